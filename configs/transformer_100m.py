"""A Transformer (RMSNorm, RoPE, SwiGLU) at the parameters of GDN-2 at 100M.

Parameters: 150,031,104; GDN-2 has 150,750,864.
Command:
  python -m experiments.train --config=configs/transformer_100m.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """Full attention in all 12 layers."""
    return scale.get_config(scale.M100, ("attention",), 2624, tokens=10e9)
