"""Gated DeltaNet-2 at 100M: the small official size.

Parameters: 150,750,864, with embedding and head.
Source: arXiv 2605.22791.
Command:
  python -m experiments.train --config=configs/gdn2_100m.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """GDN-2 in all 12 layers."""
    return scale.get_config(scale.M100, ("gdn2",), 2048, tokens=10e9)
