"""A Transformer (RMSNorm, RoPE, SwiGLU) at the parameters of GDN-2 at 300M.

Parameters: 304,636,928; GDN-2 has 304,809,920.
Command:
  python -m experiments.train --config=configs/transformer_300m.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """Full attention in all 12 layers."""
    return scale.get_config(scale.M300, ("attention",), 5120, tokens=10e9)
