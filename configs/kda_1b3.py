"""Kimi Delta Attention (arXiv 2510.26692) at the official GDN-2's parameters and state.

Parameters: 1,448,105,760; GDN-2 of this size has 1,450,096,416. State: 262,144 floats per layer.
Command:
  python -m experiments.train --config=configs/kda_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """Kimi Delta Attention in all 18 layers."""
    return scale.get_config(scale.B13, ("kda",), 7552, tokens=100e9)
