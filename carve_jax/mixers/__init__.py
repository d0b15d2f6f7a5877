"""Sequence mixers (Flax Linen), thin over the pure functions in `carve_jax.ops`."""

from carve_jax.mixers.base import Mixer
from carve_jax.mixers.entry import Entry
from carve_jax.mixers.family import GatedDelta
from carve_jax.mixers.gated_delta import GatedDeltaCache, GatedDeltaMixer
from carve_jax.mixers.gates import GateSpec
from carve_jax.mixers.layer import LayerSpec
from carve_jax.mixers.mamba3 import Mamba3Mixer
from carve_jax.mixers.presets import FAMILY, MIXERS
from carve_jax.mixers.softmax import SoftmaxAttention

__all__ = [
    "FAMILY",
    "MIXERS",
    "Entry",
    "GateSpec",
    "GatedDelta",
    "GatedDeltaCache",
    "GatedDeltaMixer",
    "LayerSpec",
    "Mamba3Mixer",
    "Mixer",
    "SoftmaxAttention",
]
