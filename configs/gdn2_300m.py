"""Gated DeltaNet-2 at 300M: the small official size.

Parameters: 304,809,920, with embedding and head.
Source: arXiv 2605.22791.
Command:
  python -m experiments.train --config=configs/gdn2_300m.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """GDN-2 in all 12 layers."""
    return scale.get_config(scale.M300, ("gdn2",), 4352, tokens=10e9)
