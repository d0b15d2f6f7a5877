"""The gates of a gated delta layer: from its input to what the rule takes."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer, constant
from jax.typing import DTypeLike

from carve_jax.mixers.base import fan_in_uniform, xavier_uniform
from carve_jax.mixers.gates import (
    CLOSED_LOOP_FLOOR,
    GateSpec,
    bounded_log_decay,
    closed_loop_erase,
    gate,
    init_a_log,
    init_dt_bias,
    log_decay,
    logsigmoid_log_decay,
    retention_log_decay,
    timestep,
)
from carve_jax.mixers.layer import LayerSpec
from carve_jax.shapes import Array, Float, Float32
from carve_jax.sharding import constrain

# P_down starts so as to keep the root mean square of the content, whatever the rank.
CONTENT_INIT = jax.nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)


class GateProjections(nn.Module):
    """The part of a gated delta layer that makes its gates; the layer itself adds the rest.

    Attributes:
      gates: which gates there are and what they depend on.
      num_heads: value heads, N.
      key_dim: channels of a key head, K.
      value_dim: channels of a value head, V.
      layer: what surrounds the rule.
      num_key_heads: key heads, H, a divisor of N; None for N.
      compute_dtype: "float32" or "bfloat16".
    """

    gates: GateSpec
    num_heads: int
    key_dim: int
    value_dim: int
    layer: LayerSpec = LayerSpec()
    num_key_heads: int | None = None
    compute_dtype: str = "float32"

    @property
    def key_heads(self) -> int:
        """Heads of queries and keys."""
        return self.num_heads if self.num_key_heads is None else self.num_key_heads

    @property
    def gate_heads(self) -> int:
        """Heads of decay and erase gate."""
        return self.key_heads if self.layer.gates_per == "key" else self.num_heads

    def _gates(self, x: Float[Array, "B T D"]) -> tuple[Array, Array, Array]:
        """Log-decay [B, T, H, 1 or K], erase [B, T, H, 1 or K], write [B, T, N, 1 or V].

        With the content gate, erase is its logits.
        """
        decay, step = self._decay(x)
        if self.gates.content:
            return decay, self._erase_logits(x), self._write(x, None, step)
        erase = self._erase(x)
        write = self._write(x, erase, step)
        if self.gates.closed_loop:
            share = self.param("b_share", nn.initializers.ones, (self.gate_heads,), jnp.float32)
            decay = jnp.maximum(decay, CLOSED_LOOP_FLOOR)
            erase = closed_loop_erase(erase, share, decay)
        return decay, erase, write

    def _decay(self, x: Array) -> tuple[Float32[Array, "B T H Kg"], Array | None]:
        """Log-decay, and the time step it is made of where there is one."""
        batch, length, _ = x.shape
        heads, gates = self.gate_heads, self.gates
        if gates.decay == "none":
            return jnp.zeros((batch, length, heads, 1), jnp.float32), None
        if gates.decay == "constant":
            constant = retention_log_decay(heads)[None, None, :, None]
            return jnp.broadcast_to(constant, (batch, length, heads, 1)), None
        with_bias = gates.decay_form == "logsigmoid"
        if gates.decay == "scalar":
            channels, projected = 1, self._linear("a_proj", heads, with_bias)(x)
        else:
            channels = self.key_dim
            projected = self._low_rank("f", x, heads * channels, with_bias, gates.decay_rank)
        projected = self._heads(projected, heads)
        if gates.decay_form == "logsigmoid":
            return logsigmoid_log_decay(projected), None
        bias = self.param("dt_bias", init_dt_bias, (heads * channels,), jnp.float32)
        bias = bias.reshape(heads, channels)
        if gates.decay_form == "bounded":
            a_log = self.param("A_log", nn.initializers.zeros, (heads,), jnp.float32)
            return bounded_log_decay(projected, bias, a_log), None
        init = functools.partial(init_a_log, least=self.layer.least_rate)
        a_log = self.param("A_log", init, (heads,), jnp.float32)
        step = timestep(projected, bias)
        return log_decay(step, a_log), step

    def _erase_logits(self, x: Array) -> Float[Array, "B T H Ke"]:
        channels = 1 if self.gates.erase == "scalar" else self.key_dim
        width, bias = self.gate_heads * channels, self.gates.erase_bias
        if bias is None:
            projection = self._linear("b_proj", width)
        else:
            projection = self._linear("b_proj", width, True, bias_init=constant(bias))
        return self._heads(projection(x), self.gate_heads)

    def _erase(self, x: Array) -> Float[Array, "B T H Ke"]:
        if self.gates.erase == "none":
            return jnp.zeros((*x.shape[:2], self.gate_heads, 1), self.compute_dtype)
        return gate(self._erase_logits(x), self.gates.erase_scale)

    def _write(self, x: Array, erase: Array | None, step: Array | None) -> Array:
        """The write gate, one per value head or one per value channel."""
        kind = self.gates.write
        if kind in ("tied", "timestep"):
            shared = erase if kind == "tied" else step
            assert shared is not None  # GateSpec refuses the other pairs.
            repeats = self.num_heads // self.gate_heads
            return jnp.repeat(shared.astype(self.compute_dtype), repeats, axis=2)
        if kind == "one":
            return jnp.ones((*x.shape[:2], self.num_heads, 1), self.compute_dtype)
        channels = 1 if kind == "scalar" else self.value_dim
        logits = self._linear("w_proj", self.num_heads * channels)(x)
        return gate(self._heads(logits, self.num_heads))

    def _content_projections(self, dtype: jnp.dtype) -> tuple[Array, Array]:
        """P_down and P_up."""
        rank = self.gates.content_rank
        down_shape = (self.num_heads, self.value_dim, rank)
        up_shape = (self.num_heads, rank, self.key_dim)
        down = self.param("content_down", self._content_init, down_shape, jnp.float32)
        up = self.param("content_up", nn.initializers.zeros, up_shape, jnp.float32)
        return down.astype(dtype), up.astype(dtype)

    def _content_init(self, rng: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return self.gates.content_scale * CONTENT_INIT(rng, shape, dtype)

    def _linear(
        self,
        name: str,
        features: int,
        bias: bool = False,
        init: Initializer | None = None,
        bias_init: Initializer = nn.initializers.zeros,
    ) -> nn.Dense:
        if init is None:
            # Xavier with this gain is the official initialisation of GDN-2's layer.
            init = xavier_uniform(2**-2.5) if self.layer.init == "xavier" else fan_in_uniform()
        dtype = jnp.dtype(self.compute_dtype)
        return nn.Dense(
            features, use_bias=bias, dtype=dtype, kernel_init=init, bias_init=bias_init, name=name
        )

    def _low_rank(
        self, name: str, x: Array, features: int, bias: bool = False, rank: int | None = None
    ) -> Array:
        down = self._linear(f"{name}_down", self.value_dim if rank is None else rank)(x)
        # A bottleneck is too narrow to be cut.
        return self._linear(f"{name}_up", features, bias)(constrain(down, "batch", "length", None))

    def _heads(self, x: Array, heads: int) -> Array:
        return x.reshape(*x.shape[:2], heads, -1)
