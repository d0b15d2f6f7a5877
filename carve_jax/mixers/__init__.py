"""Sequence mixers (Flax Linen), thin over the pure functions in ``carve_jax.ops``."""

from carve_jax.mixers.base import Mixer
from carve_jax.mixers.gated_delta import GatedDeltaCache, GatedDeltaMixer
from carve_jax.mixers.gates import GateSpec
from carve_jax.mixers.layer import LayerSpec
from carve_jax.mixers.mamba3 import Mamba3Mixer
from carve_jax.mixers.presets import GATES, LAYERS, MIXERS, SOFTMAX
from carve_jax.mixers.softmax import SoftmaxAttention

__all__ = [
    "GATES",
    "LAYERS",
    "MIXERS",
    "SOFTMAX",
    "GateSpec",
    "GatedDeltaCache",
    "GatedDeltaMixer",
    "LayerSpec",
    "Mamba3Mixer",
    "Mixer",
    "SoftmaxAttention",
]
