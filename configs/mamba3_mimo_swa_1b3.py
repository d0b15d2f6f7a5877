"""Mamba-3 MIMO of rank 4 (arXiv 2603.15569) and sliding-window attention by turns.

Parameters: 1,445,193,216; the official hybrid has 1,447,772,688. State: 262,144 floats per layer.
64 heads of 64 values (expansion 1.78) on 64 state channels, which all heads share.
Command:
  python -m experiments.train --config=configs/mamba3_mimo_swa_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """Mamba-3 MIMO of rank 4 and attention by turns."""
    return scale.get_config(
        scale.B13 | scale.MAMBA, ("mamba3_mimo", "swa"), 6720, tokens=100e9, **scale.SWA
    )
