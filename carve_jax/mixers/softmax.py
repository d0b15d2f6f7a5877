"""Softmax attention as a mixer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from carve_jax.mixers.base import fan_in_uniform
from carve_jax.mixers.entry import BY_HEADS, SHARED, Config, Entry
from carve_jax.ops.attention import AttentionCache, attention, init_attention_cache
from carve_jax.shapes import Array, Float, Int32
from carve_jax.sharding import Axes, current_mesh


class SoftmaxAttention(nn.Module):
    """Causal softmax attention with rotary positions, over everything or a sliding window.

    In pseudo-code, for one head::

        q, k = rope(x W_q), rope(x W_k)             # [head_dim]
        v = x W_v                                   # [head_dim]
        for every token t:
            seen = the tokens of its document up to t, or the last `window` of them
            o = softmax(q · kᵀ of seen / √head_dim) v of seen
        y = concatenate heads of o
        return y W_o

    Attributes:
      num_heads: query heads.
      head_dim: channels of a head; even.
      kv_heads: heads of keys and values, a divisor of `num_heads`; None for all.
      window: tokens that a token sees, itself included; None for all.
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
        """An empty ring of `max_length` tokens, or of the window when that is less."""
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
        """Mix `x`; see `Mixer`."""

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
            # cuDNN's has not been tried on arrays that lie on several devices.
            implementation=None if current_mesh() is None else "xla",
        )
        output = output.reshape(*x.shape[:2], self.num_heads * self.head_dim)
        return linear("o_proj", x.shape[-1], self.output_scale)(output), cache


PARAMETERS: Mapping[str, Axes] = {
    **SHARED,
    "q_proj": BY_HEADS,
    "k_proj": ("embed", "kv_heads"),
    "v_proj": ("embed", "kv_heads"),
}


@dataclasses.dataclass(frozen=True)
class Softmax(Entry):
    """Softmax attention.

    Attributes:
      source: where it was published.
      sliding: over the window that a model's configuration gives, else over everything.
    """

    source: str
    sliding: bool = False

    parameters = PARAMETERS

    def __call__(self, **fields: Any) -> SoftmaxAttention:
        """Attention with any of its fields changed by name."""
        return SoftmaxAttention(**({"window": 2048} if self.sliding else {}) | fields)

    def of_model(self, config: Config) -> SoftmaxAttention:
        """See `Entry`."""
        return SoftmaxAttention(
            num_heads=config.query_heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            window=config.window if self.sliding else None,
            rope_theta=config.rope_theta,
            output_scale=(2 * config.layers) ** -0.5,
            compute_dtype=config.compute_dtype,
        )

    def check(self, config: Config) -> None:
        """Refuse heads that do not make up the model's width, or that RoPE cannot turn."""
        if config.query_heads % config.kv_heads:
            raise ValueError(
                f"attention_kv_heads={config.kv_heads} does not divide "
                f"attention_heads={config.query_heads}."
            )
        if config.attention_head_dim is None and config.d_model % config.query_heads:
            raise ValueError(
                f"attention_heads={config.query_heads} does not divide d_model={config.d_model}; "
                "choose another number or give attention_head_dim."
            )
        if config.head_dim % 2:
            raise ValueError(
                f"attention heads have {config.head_dim} channels; RoPE needs an even number."
            )

    def forward_flops(self, config: Config, context: int) -> dict[str, float]:
        """4·E per head and token seen, which is averaged over a causal row."""
        window = min(config.window, context) if self.sliding else context
        seen = window - window * (window - 1) / (2 * context)
        return {"attention": 4 * config.query_heads * config.head_dim * seen}

    def cut_by_tensor(self, config: Config) -> dict[str, int]:
        """Query heads."""
        return {"attention_heads": config.query_heads}

    def may_be_replicated(self, config: Config) -> dict[str, int]:
        """Heads of keys and values."""
        return {"kv_heads": config.kv_heads}

    def state_size(self, config: Config) -> int:
        """None: its cache is of tokens."""
        del config
        return 0

    def sees_all(self) -> bool:
        """Unless it slides."""
        return not self.sliding
