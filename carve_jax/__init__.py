"""CARVE and the gated delta rule family in JAX: rules with exact gradients, Flax models on them.

The rules are pure functions (`gated_delta_rule`, `carve_rule`); mixers and models are thin Flax
modules over them.
"""

from carve_jax import interop
from carve_jax.config import LMConfig
from carve_jax.decoding import Decoding, extend, prefill
from carve_jax.decoding_file import load_decoding, save_decoding
from carve_jax.generate import decode, generate
from carve_jax.mixers import (
    MIXERS,
    GatedDeltaMixer,
    GateSpec,
    LayerSpec,
    Mamba3Mixer,
    SoftmaxAttention,
)
from carve_jax.model import LanguageModel, count_parameters
from carve_jax.ops.gated_delta import (
    CarveState,
    carve_rule,
    gated_delta_rule,
    resolve_implementation,
    value_axis_erase_rule,
)
from carve_jax.versions import VERSION as __version__

__all__ = [
    "MIXERS",
    "CarveState",
    "Decoding",
    "GateSpec",
    "GatedDeltaMixer",
    "LMConfig",
    "LanguageModel",
    "LayerSpec",
    "Mamba3Mixer",
    "SoftmaxAttention",
    "__version__",
    "carve_rule",
    "count_parameters",
    "decode",
    "extend",
    "gated_delta_rule",
    "generate",
    "interop",
    "load_decoding",
    "prefill",
    "resolve_implementation",
    "save_decoding",
    "value_axis_erase_rule",
]
