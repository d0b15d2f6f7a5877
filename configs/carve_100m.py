"""CARVE at 100M, in the shape of GDN-2's small official size.

Parameters: 144,078,480; GDN-2 has 150,750,864, which
--config.model.mlp_dim=2304 matches. Source: arXiv 2606.27229.
Command:
  python -m experiments.train --config=configs/carve_100m.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """CARVE in all 12 layers."""
    return scale.get_config(scale.M100, ("carve",), 2048, tokens=10e9)
