"""Gated DeltaNet (arXiv 2412.06464) at the official GDN-2's parameters and state.

Parameters: 1,449,875,520; GDN-2 of this size has 1,450,096,416. State: 262,144 floats per layer.
Command:
  python -m experiments.train --config=configs/gdn_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """Gated DeltaNet in all 18 layers."""
    return scale.get_config(scale.B13, ("gdn",), 7040, tokens=100e9)
