"""CARVE and sliding-window attention, three to one, at the official hybrid's parameters.

Parameters: 1,449,097,584; the official hybrid has 1,447,772,688. State: 262,144 floats per layer.
20 layers, since 18 are no multiple of four.
Command:
  python -m experiments.train --config=configs/carve_swa_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """Three of CARVE, one of attention."""
    return scale.get_config(
        scale.B13 | {"layers": 20},
        ("carve", "carve", "carve", "swa"),
        5952,
        tokens=100e9,
        **scale.SWA,
    )
