"""A Transformer (RMSNorm, RoPE, SwiGLU) at the official GDN-2's parameters.

Parameters: 1,453,411,584; GDN-2 of this size has 1,450,096,416. Its cache grows with the text.
Command:
  python -m experiments.train --config=configs/transformer_1b3.py --workdir=DIR …
Not trained yet: no number is expected.
"""

from ml_collections import ConfigDict

from configs import scale


def get_config() -> ConfigDict:
    """Full attention in all 18 layers."""
    return scale.get_config(scale.B13, ("attention",), 7424, tokens=100e9, attention_heads=18)
