"""What every mixer shares: its interface, its initialisers and two small functions."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, variance_scaling

from carve_jax.shapes import Array, Float, Int32

Cache = Any  # A pytree of arrays, each with the batch as its first axis.


@runtime_checkable
class Mixer(Protocol):
    """A causal sequence mixer: tokens see their own document's past alone."""

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: Cache | None = None,
        segment_ids: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Mix `x`; with a cache, go on from it and return the next one, else return None.

        A cache belongs to the row's first document. Any split of a sequence into calls gives
        what one call gives.
        """
        ...

    def init_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for sequences of up to `max_length` tokens; needs no parameters."""
        ...


def xavier_uniform(gain: float = 1.0) -> Initializer:
    """Uniform in ±gain·√(6 / (fan_in + fan_out))."""
    return variance_scaling(gain**2, "fan_avg", "uniform")


def fan_in_uniform(scale: float = 1.0) -> Initializer:
    """Uniform in ±scale/√fan_in, as PyTorch's Linear and Conv1d."""
    return variance_scaling(scale**2 / 3, "fan_in", "uniform")


def l2_normalize(x: Float[Array, "*rest K"], eps: float = 1e-6) -> Float[Array, "*rest K"]:
    """`x / √(Σx² + eps)` over the last axis, computed in float32, in x's dtype."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * inverse).astype(x.dtype)


def rms_norm(
    x: Float[Array, "*rest V"],
    weight: Float[Array, " V"],
    eps: float,
    gate: Float[Array, "*rest V"] | None = None,
) -> Float[Array, "*rest V"]:
    """`x / √(mean x² + eps) · weight`, times `gate` if given; in float32, in x's dtype."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    normed = wide * inverse * jnp.expand_dims(weight, range(x.ndim - 1))
    return (normed if gate is None else normed * gate).astype(x.dtype)
