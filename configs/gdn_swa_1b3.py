"""Gated DeltaNet (arXiv 2412.06464) and sliding-window attention by turns.

Parameters: 1,451,643,552; the official hybrid has 1,447,772,688. State: 262,144 floats per layer.
Command:
  python -m experiments.train --config=configs/gdn_swa_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """Gated DeltaNet and attention by turns."""
    return scale.get_config(scale.B13, ("gdn", "swa"), 7232, tokens=100e9, **scale.SWA)
