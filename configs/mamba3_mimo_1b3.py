"""Mamba-3 MIMO of rank 4 (arXiv 2603.15569) at the official GDN-2's parameters and state.

Parameters: 1,452,900,096; GDN-2 of this size has 1,450,096,416. State: 262,144 floats per layer.
64 heads of 64 values (expansion 1.78) on 64 state channels, which all heads share.
Command:
  python -m experiments.train --config=configs/mamba3_mimo_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """Mamba-3 MIMO of rank 4 in all 18 layers."""
    return scale.get_config(scale.B13 | scale.MAMBA, ("mamba3_mimo",), 6144, tokens=100e9)
