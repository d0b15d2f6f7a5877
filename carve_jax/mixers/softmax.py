"""Softmax attention as a mixer."""

import jax.numpy as jnp
from flax import linen as nn

from carve_jax.mixers.base import fan_in_uniform
from carve_jax.ops.attention import AttentionCache, attention, init_attention_cache
from carve_jax.shapes import Array, Float, Int32


class SoftmaxAttention(nn.Module):
    """Causal softmax attention with rotary positions, over everything or a sliding window.

    Attributes:
        num_heads: query heads.
        head_dim: channels of a head; even.
        kv_heads: heads of keys and values, a divisor of ``num_heads``; None for all.
        window: tokens a token sees, itself included; None for all.
        rope_theta: base of the rotary embedding.
        output_scale: factor of the output projection's initial values, 1/√(2·layers) in a model.
        compute_dtype: "float32" or "bfloat16"; softmax is float32.
    """

    num_heads: int
    head_dim: int
    kv_heads: int | None = None
    window: int | None = None
    rope_theta: float = 10000.0
    output_scale: float = 1.0
    compute_dtype: str = "float32"

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int) -> AttentionCache:
        """An empty ring of ``max_length`` tokens, or of the window when that is less."""
        return init_attention_cache(
            batch,
            max_length,
            self.num_heads if self.kv_heads is None else self.kv_heads,
            self.head_dim,
            window=self.window,
            dtype=jnp.dtype(self.compute_dtype),
        )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: AttentionCache | None = None,
        segment_ids: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], AttentionCache | None]:
        """Mix ``x``; see ``Mixer``."""

        def linear(name: str, features: int, scale: float = 1.0) -> nn.Dense:
            dtype = jnp.dtype(self.compute_dtype)
            init = fan_in_uniform(scale)
            return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)

        def heads(name: str, count: int) -> Array:
            projected = linear(name, count * self.head_dim)(x)
            return projected.reshape(*x.shape[:2], count, self.head_dim)

        kv_heads = self.num_heads if self.kv_heads is None else self.kv_heads
        output, cache = attention(
            heads("q_proj", self.num_heads),
            heads("k_proj", kv_heads),
            heads("v_proj", kv_heads),
            window=self.window,
            rope_theta=self.rope_theta,
            cache=cache,
            segment_ids=segment_ids,
        )
        output = output.reshape(*x.shape[:2], self.num_heads * self.head_dim)
        return linear("o_proj", x.shape[-1], self.output_scale)(output), cache
