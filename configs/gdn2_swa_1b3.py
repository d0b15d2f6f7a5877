"""Gated DeltaNet-2 and sliding-window attention at 1.3B: the official `swa_gdn2_1.3B`.

Source: arXiv 2605.22791 and its code, which counts 1,300,314,384 parameters without embedding, head
and last norm; 1,447,772,688 with them. State: 262,144 floats per layer.
Command:
  python -m experiments.train --config=configs/gdn2_swa_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """GDN-2 and attention by turns."""
    return scale.get_config(scale.B13, ("gdn2", "swa"), 6784, tokens=100e9, **scale.SWA)
