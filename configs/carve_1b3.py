"""CARVE at 1.3B, in the shape of the official `gdn2_1.3B`, as in its paper (arXiv 2606.27229).

Parameters: 1,367,004,960, of them 447,089,184 in the mixers (GDN-2: 530,180,640). State: 262,144
floats per layer. With --config.model.mlp_dim=6848 it has GDN-2's parameters to 0.24%.
Command:
  python -m experiments.train --config=configs/carve_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """CARVE in all 18 layers."""
    return scale.get_config(scale.B13, ("carve",), 6208, tokens=100e9)
