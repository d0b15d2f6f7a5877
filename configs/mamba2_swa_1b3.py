"""Mamba-2 (arXiv 2405.21060) and sliding-window attention by turns.

Parameters: 1,449,658,944; the official hybrid has 1,447,772,688. State: 262,144 floats per layer.
64 heads of 64 values (expansion 1.78) on 64 state channels, which all heads share.
Command:
  python -m experiments.train --config=configs/mamba2_swa_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """Mamba-2 and attention by turns."""
    return scale.get_config(
        scale.B13 | scale.MAMBA, ("mamba2", "swa"), 6848, tokens=100e9, **scale.SWA
    )
