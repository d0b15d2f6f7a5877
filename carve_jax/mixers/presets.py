"""The mixers by name."""

import functools
from collections.abc import Callable, Mapping

from carve_jax.mixers.base import Mixer
from carve_jax.mixers.gated_delta import GatedDeltaMixer
from carve_jax.mixers.gates import GateSpec
from carve_jax.mixers.softmax import SoftmaxAttention

GATES: Mapping[str, GateSpec] = {
    "linear_attention": GateSpec(decay="none", erase="none", write="one"),
    "retnet": GateSpec(decay="constant", erase="none", write="one"),
    "mamba2": GateSpec(decay="scalar", erase="none", write="timestep"),
    "gla": GateSpec(decay="channel", erase="none", write="one"),
    "deltanet": GateSpec(decay="none", erase="scalar", write="tied"),
    "gdn": GateSpec(decay="scalar", erase="scalar", write="tied"),
    "kda": GateSpec(decay="channel", erase="scalar", write="tied"),
    "gdn2": GateSpec(decay="channel", erase="channel", write="channel"),
    "carve": GateSpec(decay="channel", erase="channel", write="scalar", content=True),
}
"""The gates of each mixer of the family.

"gdn2" is the official layer and "carve" its content-aware form. The others have their published
gates in the same layer, GDN-2's: its convolutions, L2 norm, output gate and initialisation stand
in for those of each publication.
"""

MIXERS: Mapping[str, Callable[..., Mixer]] = {
    **{name: functools.partial(GatedDeltaMixer, gates=gates) for name, gates in GATES.items()},
    "attention": SoftmaxAttention,
    "swa": functools.partial(SoftmaxAttention, window=2048),
}
"""Constructors by name: ``MIXERS["carve"](num_heads=4, key_dim=64, value_dim=64)``."""
