"""One module for the whole gated delta family: CARVE, GDN-2 and the mixers they generalise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from carve_jax.mixers.base import fan_in_uniform, gated_rms_norm, l2_normalize, xavier_uniform
from carve_jax.mixers.gates import (
    GateSpec,
    gate,
    init_a_log,
    init_dt_bias,
    log_decay,
    retention_log_decay,
    timestep,
)
from carve_jax.ops.gated_delta import CarveState, carve_rule, gated_delta_rule
from carve_jax.ops.short_conv import short_conv
from carve_jax.shapes import Array, Float, Float32, Int32

# Every linear layer starts as in the official GDN-2 layer.
MIXER_INIT = xavier_uniform(2**-2.5)
# P_down starts so as to keep the root mean square of the content, whatever the rank.
CONTENT_INIT = jax.nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)


class GatedDeltaCache(NamedTuple):
    """The last inputs of the three convolutions and the state of the rule."""

    query: Float[Array, "B W-1 H*K"]
    key: Float[Array, "B W-1 H*K"]
    value: Float[Array, "B W-1 N*V"]
    state: CarveState | Float32[Array, "B N K V"]


class GatedDeltaMixer(nn.Module):
    """The GDN-2 layer (arXiv 2605.22791) with its gates chosen by a ``GateSpec``.

    Projections, short convolutions with SiLU on queries, keys and values, L2 norm of queries and
    keys, the rule, RMSNorm times SiLU of an output gate, output projection. With the content gate
    it is CARVE (arXiv 2606.27229). Parameters are float32, products are in ``compute_dtype``,
    log-decay and state in float32.

    Attributes:
        gates: which gates there are and what they depend on.
        num_heads: value heads, N.
        key_dim: channels of a key head, K.
        value_dim: channels of a value head, V.
        num_key_heads: key heads, H, a divisor of N; None for N.
        conv_width: taps of the short convolution, W.
        gate_chunk: tokens in a gate chunk (content gate alone).
        content_rank: rank of the content gate, R.
        content_norm: divide the content by its root mean square.
        stop_gradient_content: an ablation: no gradient through the content.
        norm_eps: of the output's RMSNorm.
        compute_dtype: "float32" or "bfloat16".
        implementation: of the rule; None for the best one here.
        chunk_size: tokens in a tile of the rule.
    """

    gates: GateSpec
    num_heads: int
    key_dim: int
    value_dim: int
    num_key_heads: int | None = None
    conv_width: int = 4
    gate_chunk: int = 64
    content_rank: int = 16
    content_norm: bool = False
    stop_gradient_content: bool = False
    norm_eps: float = 1e-5
    compute_dtype: str = "float32"
    implementation: str | None = None
    chunk_size: int = 64

    @property
    def key_heads(self) -> int:
        """Heads of queries and keys."""
        return self.num_heads if self.num_key_heads is None else self.num_key_heads

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int) -> GatedDeltaCache:
        """An empty cache, of one size whatever ``max_length`` is."""
        del max_length
        dtype = jnp.dtype(self.compute_dtype)
        key_width, value_width = self.key_heads * self.key_dim, self.num_heads * self.value_dim

        def history(width: int) -> Array:
            return jnp.zeros((batch, self.conv_width - 1, width), dtype)

        memory = jnp.zeros((batch, self.num_heads, self.key_dim, self.value_dim), jnp.float32)
        state: CarveState | Array = memory
        if self.gates.content:
            shape = (batch, self.num_heads, self.value_dim)
            state = CarveState(
                memory, jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((batch,), jnp.int32)
            )
        return GatedDeltaCache(history(key_width), history(key_width), history(value_width), state)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: GatedDeltaCache | None = None,
        segment_ids: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], GatedDeltaCache | None]:
        """Mix ``x``; see ``Mixer``."""
        if self.num_heads % self.key_heads:
            raise ValueError(
                f"num_key_heads={self.key_heads} does not divide num_heads={self.num_heads}."
            )
        past: Any = (None,) * 4 if cache is None else cache
        query_past, key_past, value_past, state = past
        query, query_tail = self._convolved("q", self.key_heads, x, query_past, segment_ids)
        key, key_tail = self._convolved("k", self.key_heads, x, key_past, segment_ids)
        value, value_tail = self._convolved("v", self.num_heads, x, value_past, segment_ids)
        query, key = l2_normalize(query), l2_normalize(key)

        output, state = self._rule(x, query, key, value, state, segment_ids)

        output_gate = self._heads(
            self._low_rank("g", x, self.num_heads * self.value_dim, bias=True)
        )
        weight = self.param("o_norm", nn.initializers.ones, (self.value_dim,), jnp.float32)
        output = gated_rms_norm(output, output_gate, weight, self.norm_eps)
        y = self._linear("o_proj", x.shape[-1])(output.reshape(*x.shape[:2], -1))
        if cache is None:
            return y, None
        return y, GatedDeltaCache(query_tail, key_tail, value_tail, state)

    def _linear(self, name: str, features: int, bias: bool = False) -> nn.Dense:
        dtype = jnp.dtype(self.compute_dtype)
        return nn.Dense(features, use_bias=bias, dtype=dtype, kernel_init=MIXER_INIT, name=name)

    def _low_rank(self, name: str, x: Array, features: int, bias: bool = False) -> Array:
        down = self._linear(f"{name}_down", self.value_dim)(x)
        return self._linear(f"{name}_up", features, bias)(down)

    def _heads(self, x: Array, heads: int | None = None) -> Array:
        return x.reshape(*x.shape[:2], self.num_heads if heads is None else heads, -1)

    def _convolved(
        self, name: str, heads: int, x: Array, cache: Array | None, segment_ids: Array | None
    ) -> tuple[Array, Array]:
        width = heads * (self.value_dim if name == "v" else self.key_dim)
        projected = self._linear(f"{name}_proj", width)(x)
        kernel = self.param(f"{name}_conv", fan_in_uniform(), (self.conv_width, width), jnp.float32)
        y, tail = short_conv(projected, kernel, cache=cache, segment_ids=segment_ids)
        return self._heads(jax.nn.silu(y), heads), tail

    def _rule(
        self,
        x: Array,
        query: Array,
        key: Array,
        value: Array,
        state: CarveState | Array | None,
        segment_ids: Array | None,
    ) -> tuple[Array, CarveState | Array]:
        decay, step = self._decay(x)
        options: dict[str, Any] = {
            "initial_state": state,
            "segment_ids": segment_ids,
            "implementation": self.implementation,
        }
        if self.gates.content:
            down_shape = (self.num_heads, self.value_dim, self.content_rank)
            up_shape = (self.num_heads, self.content_rank, self.key_dim)
            down = self.param("content_down", CONTENT_INIT, down_shape, jnp.float32)
            up = self.param("content_up", nn.initializers.zeros, up_shape, jnp.float32)
            return carve_rule(
                query,
                key,
                value,
                decay,
                self._erase_logits(x),
                self._write(x, None, step),
                down.astype(value.dtype),
                up.astype(value.dtype),
                gate_chunk=self.gate_chunk,
                erase_scale=self.gates.erase_scale,
                stop_gradient_content=self.stop_gradient_content,
                content_norm=self.content_norm,
                **options,
            )
        erase = self._erase(x)
        write = self._write(x, erase, step)
        return gated_delta_rule(
            query, key, value, decay, erase, write, chunk_size=self.chunk_size, **options
        )

    def _decay(self, x: Array) -> tuple[Float32[Array, "B T H Kg"], Array | None]:
        """Log-decay, and the time step it is made of where there is one."""
        batch, length, _ = x.shape
        heads = self.key_heads
        if self.gates.decay == "none":
            return jnp.zeros((batch, length, heads, 1), jnp.float32), None
        if self.gates.decay == "constant":
            constant = retention_log_decay(heads)[None, None, :, None]
            return jnp.broadcast_to(constant, (batch, length, heads, 1)), None
        if self.gates.decay == "scalar":
            channels, projected = 1, self._linear("a_proj", heads)(x)
        else:
            channels, projected = self.key_dim, self._low_rank("f", x, heads * self.key_dim)
        dt_bias = self.param("dt_bias", init_dt_bias, (heads * channels,), jnp.float32)
        a_log = self.param("A_log", init_a_log, (heads,), jnp.float32)
        step = timestep(self._heads(projected, heads), dt_bias.reshape(heads, channels))
        return log_decay(step, a_log), step

    def _erase_logits(self, x: Array) -> Float[Array, "B T H Kg"]:
        channels = 1 if self.gates.erase == "scalar" else self.key_dim
        return self._heads(self._linear("b_proj", self.key_heads * channels)(x), self.key_heads)

    def _erase(self, x: Array) -> Float[Array, "B T H Kg"]:
        if self.gates.erase == "none":
            return jnp.zeros((*x.shape[:2], self.key_heads, 1), self.compute_dtype)
        return gate(self._erase_logits(x), self.gates.erase_scale)

    def _write(self, x: Array, erase: Array | None, step: Array | None) -> Array:
        """The write gate, one a value head or one a value channel."""
        kind = self.gates.write
        if kind in ("tied", "timestep"):
            shared = erase if kind == "tied" else step
            assert shared is not None  # GateSpec refuses the other pairs.
            repeats = self.num_heads // self.key_heads
            return jnp.repeat(shared.astype(self.compute_dtype), repeats, axis=2)
        if kind == "one":
            return jnp.ones((*x.shape[:2], self.num_heads, 1), self.compute_dtype)
        channels = 1 if kind == "scalar" else self.value_dim
        return gate(self._heads(self._linear("w_proj", self.num_heads * channels)(x)))
