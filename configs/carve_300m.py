"""CARVE at 300M, in the shape of GDN-2's small official size.

Parameters: 292,816,832; GDN-2 has 304,809,920, which
--config.model.mlp_dim=4672 matches. Source: arXiv 2606.27229.
Command:
  python -m experiments.train --config=configs/carve_300m.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """CARVE in all 12 layers."""
    return scale.get_config(scale.M300, ("carve",), 4352, tokens=10e9)
