"""Kimi Delta Attention (arXiv 2510.26692) and sliding-window attention by turns.

Parameters: 1,450,758,672; the official hybrid has 1,447,772,688. State: 262,144 floats per layer.
Command:
  python -m experiments.train --config=configs/kda_swa_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """Kimi Delta Attention and attention by turns."""
    return scale.get_config(scale.B13, ("kda", "swa"), 7488, tokens=100e9, **scale.SWA)
