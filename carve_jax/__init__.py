"""CARVE and the gated delta rule family in JAX: rules with exact gradients, Flax models on them.

The rules are pure functions (`gated_delta_rule`, `carve_rule`); mixers and models are thin Flax
modules over them.
"""

from carve_jax.config import LMConfig
from carve_jax.generate import generate
from carve_jax.mixers import MIXERS, GatedDeltaMixer, GateSpec, SoftmaxAttention
from carve_jax.model import LanguageModel, count_parameters
from carve_jax.ops.gated_delta import (
    CarveState,
    carve_rule,
    gated_delta_rule,
    resolve_implementation,
    value_axis_erase_rule,
)

__all__ = [
    "MIXERS",
    "CarveState",
    "GateSpec",
    "GatedDeltaMixer",
    "LMConfig",
    "LanguageModel",
    "SoftmaxAttention",
    "carve_rule",
    "count_parameters",
    "gated_delta_rule",
    "generate",
    "resolve_implementation",
    "value_axis_erase_rule",
]
