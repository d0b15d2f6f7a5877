"""Gated DeltaNet-2 at 1.3B, to the letter of the official `gdn2_1.3B`.

Source: arXiv 2605.22791 and its code, which counts 1,302,638,112 parameters without embedding, head
and last norm; 1,450,096,416 with them. State: 262,144 floats per layer.
Command:
  python -m experiments.train --config=configs/gdn2_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """GDN-2 in all 18 layers."""
    return scale.get_config(scale.B13, ("gdn2",), 6208, tokens=100e9)
