"""CARVE and sliding-window attention one to one (GAGA: gated, attention, gated, …).

Parameters: 1,446,040,080; the official hybrid has 1,447,772,688. State: 262,144 floats per layer.
Command:
  python -m experiments.train --config=configs/carve_gaga_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """CARVE and attention by turns."""
    return scale.get_config(scale.B13, ("carve", "swa"), 7104, tokens=100e9, **scale.SWA)
