"""Mamba-3, SISO and MIMO, on the gated delta rule."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from carve_jax.mixers.base import fan_in_uniform
from carve_jax.mixers.entry import BY_HEADS, SHARED, Config, Entry, recurrent_fields
from carve_jax.mixers.gates import init_dt_bias
from carve_jax.ops.rotation import cumulative_turns, rotate_pairs
from carve_jax.ops.trapezoid import TrapezoidState, init_trapezoid_state, trapezoidal_rule
from carve_jax.shapes import Array, Float, Float32, Int32
from carve_jax.sharding import Axes, per_device, spec

# The continuous decay rate is at least this.
A_FLOOR = 1e-4


class Mamba3Cache(NamedTuple):
    """The state of the rule, and how far the keys have turned, in units of 2⁻³¹ turns."""

    state: TrapezoidState
    angle: Int32[Array, "B N J"]


class Mamba3Mixer(nn.Module):
    """The Mamba-3 layer (arXiv 2603.15569; official code state-spaces/mamba, `mamba3.py`).

    In pseudo-code, for one head; a, dt, trap, angle and z are projections of x, and there is no
    short convolution::

        A, Δ, λ = −max(softplus(a), 1e-4), softplus(dt + dt_bias), σ(trap)      # [1]
        θ = θ of the token before + π · tanh(angle) · Δ     # [a quarter of K], one for each pair
        q = rotate(rms(x W_c) ⊙ c_norm + c_bias, θ)         # [K], C of Mamba
        k = rotate(rms(x W_b) ⊙ b_norm + b_bias, θ)         # [K], B of Mamba
        v = x W_x                                           # [V]
        for every token:
            S = exp(ΔA) S + (1 − λ) Δ exp(ΔA) k_beforeᵀ v_before + λ Δ kᵀ v     # [K, V]
            o = (q S + D · v) ⊙ silu(z)
        y = concatenate heads of o
        return y W_o

    With `mimo_rank` M > 1 (MIMO) a head writes M key-value pairs per token into one state and
    reads it M times: v_r = x ⊙ mimo_x[r], z_r = z ⊙ mimo_z[r], y = Σ_r mimo_o[r] ⊙ y_r. Rank 1
    (SISO) has no `mimo_*`. Rotated pairs are channels (2i, 2i+1) for any rank; the official
    MIMO kernel pairs i with i + K/2, which is a permutation of the channels of B and C.

    Parameters are float32, products are in `compute_dtype`; gates, angles, norms and state are
    float32. The official option of a norm before the output projection is left out.

    Attributes:
      num_heads: value heads, N.
      key_dim: channels of a key head, K (the state size).
      value_dim: channels of a value head, V.
      num_key_heads: heads of B and C (groups), H, a divisor of N; None for N. The official
        layer has 1.
      mimo_rank: M; the official MIMO layer has 4.
      rope_fraction: part of a head's key channels that is rotated, above 0 and at most 1.
      norm_eps: of the RMSNorm of B and C.
      output_scale: factor of the output projection's initial values.
      compute_dtype: "float32" or "bfloat16".
      implementation: of the rule; None for the best one here.
      chunk_size: tokens in a tile of the rule, to which a token of rank M counts as M.
    """

    num_heads: int
    key_dim: int
    value_dim: int
    num_key_heads: int | None = None
    mimo_rank: int = 1
    rope_fraction: float = 0.5
    norm_eps: float = 1e-5
    output_scale: float = 1.0
    compute_dtype: str = "float32"
    implementation: str | None = None
    chunk_size: int = 64

    @property
    def key_heads(self) -> int:
        """Heads of queries and keys before they are repeated."""
        return self.num_heads if self.num_key_heads is None else self.num_key_heads

    @property
    def rotated_pairs(self) -> int:
        """Pairs of key channels that are rotated, J."""
        return int(self.key_dim * self.rope_fraction) // 2

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int) -> Mamba3Cache:
        """An empty cache, of one size whatever `max_length` is."""
        del max_length
        sizes = (self.mimo_rank, self.num_heads, self.key_dim, self.value_dim)
        state = init_trapezoid_state(batch, *sizes, jnp.dtype(self.compute_dtype))
        return Mamba3Cache(state, jnp.zeros((batch, self.num_heads, self.rotated_pairs), jnp.int32))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: Mamba3Cache | None = None,
        segment_ids: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Mamba3Cache | None]:
        """Mix `x`; see `Mixer`."""
        self._check(x, cache)
        timestep, log_decay, trapezoid = self._gates(x)
        increment = jnp.tanh(self._float32("angle_proj", self.rotated_pairs, x)) / 2
        turns, angle = cumulative_turns(
            increment[:, :, None] * timestep[..., None],
            initial=None if cache is None else cache.angle,
            segment_ids=segment_ids,
        )
        key, query = (rotate_pairs(self._keys(name, x), turns) for name in ("b", "c"))
        value = self._heads(self._linear("x_proj", self.num_heads * self.value_dim)(x))
        value = value * self._mimo("mimo_x", 1 / self.mimo_rank).astype(value.dtype)
        output, state = self._rule(
            (query.astype(value.dtype), key.astype(value.dtype), value),
            (log_decay, timestep, trapezoid),
            None if cache is None else cache.state,
            segment_ids,
        )
        skip = self.param("D", nn.initializers.ones, (self.num_heads,), jnp.float32)
        output += skip[None, None, None, :, None] * value.astype(jnp.float32)
        z = self._heads(self._float32("z_proj", self.num_heads * self.value_dim, x))
        output *= jax.nn.silu(z * self._mimo("mimo_z", 1.0))
        output = jnp.sum(output * self._mimo("mimo_o", 1 / self.mimo_rank), axis=2)
        output = output.reshape(*x.shape[:2], -1).astype(self.compute_dtype)
        y = self._linear("o_proj", x.shape[-1], self.output_scale)(output)
        return y, None if cache is None else Mamba3Cache(state, angle)

    def _rule(
        self,
        arrays: tuple[Array, Array, Array],
        gates: tuple[Array, Array, Array],
        state: TrapezoidState | None,
        segment_ids: Array | None,
    ) -> tuple[Float32[Array, "B T M N V"], TrapezoidState]:
        """The trapezoidal rule; a mesh cuts it by rows and heads, and nothing is sent."""

        def rule(arrays: Any, gates: Any, state: Any, segment_ids: Any) -> tuple[Array, Any]:
            return trapezoidal_rule(
                *arrays,
                *gates,
                initial_state=state,
                segment_ids=segment_ids,
                chunk_size=self.chunk_size,
                implementation=self.implementation,
            )

        by_head, last = spec("batch", None, None, "heads", None), spec("batch", None, "heads", None)
        memory, weight = spec("batch", "heads", None, None), spec("batch", "heads")
        parts: Any = (memory, last, last, weight)
        state_spec = TrapezoidState(*parts)
        in_specs = (
            (by_head,) * 3,
            (spec("batch", None, "heads"),) * 3,
            None if state is None else state_spec,
            None if segment_ids is None else spec("batch", None),
        )
        run = per_device(rule, in_specs, (by_head, state_spec))
        return run(arrays, gates, state, segment_ids)

    def _check(self, x: Array, cache: Mamba3Cache | None) -> None:
        """Refuse settings that fit no layer, and a cache of another layer or batch."""
        if self.key_heads < 1 or self.num_heads % self.key_heads:
            raise ValueError(
                f"num_key_heads={self.key_heads} does not divide num_heads={self.num_heads}."
            )
        if self.mimo_rank < 1:
            raise ValueError(f"mimo_rank={self.mimo_rank}; it must be 1 (SISO) or more.")
        if not 0 < self.rope_fraction <= 1 or self.rotated_pairs < 1:
            raise ValueError(
                f"rope_fraction={self.rope_fraction} of key_dim={self.key_dim} rotates no pair of "
                "channels, or more than there are; give a fraction of at most 1 that leaves two."
            )
        angles = (x.shape[0], self.num_heads, self.rotated_pairs)
        if cache is not None and cache.angle.shape != angles:
            raise ValueError(
                f"cache.angle has shape {cache.angle.shape}; expected {angles}: make the cache by "
                f"init_cache({x.shape[0]}, …) of this mixer."
            )

    def _linear(self, name: str, features: int, scale: float = 1.0) -> nn.Dense:
        dtype, init = jnp.dtype(self.compute_dtype), fan_in_uniform(scale)
        return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)

    def _float32(self, name: str, features: int, x: Array) -> Float32[Array, "B T features"]:
        return self._linear(name, features)(x).astype(jnp.float32)

    def _heads(self, x: Float[Array, "B T values"]) -> Float[Array, "B T 1 N V"]:
        return x.reshape(*x.shape[:2], 1, self.num_heads, self.value_dim)

    def _mimo(self, name: str, initial: float) -> Float32[Array, "1 1 M N V"]:
        """One gain for each rank, head and channel; all are 1 for SISO."""
        if self.mimo_rank == 1:
            return jnp.ones((1, 1, 1, 1, 1), jnp.float32)
        shape = (self.num_heads, self.mimo_rank, self.value_dim)
        gain = self.param(name, nn.initializers.constant(initial), shape, jnp.float32)
        return gain.swapaxes(0, 1)[None, None]

    def _gates(self, x: Array) -> tuple[Float32[Array, "B T N"], ...]:
        """Δ, log-decay Δ·A and λ."""
        dt_bias = self.param("dt_bias", init_dt_bias, (self.num_heads,), jnp.float32)
        dt = self._float32("dt_proj", self.num_heads, x)
        timestep = jax.nn.softplus(dt + dt_bias[None, None])
        rate = jax.nn.softplus(self._float32("a_proj", self.num_heads, x))
        trapezoid = jax.nn.sigmoid(self._float32("trap_proj", self.num_heads, x))
        return timestep, -timestep * jnp.maximum(rate, A_FLOOR), trapezoid

    def _keys(self, name: str, x: Array) -> Float32[Array, "B T M N K"]:
        """B or C: RMSNorm over K, repeated to the value heads, and one bias per head."""
        rank, heads, channels = self.mimo_rank, self.key_heads, self.key_dim
        keys = self._float32(f"{name}_proj", rank * heads * channels, x)
        keys = keys.reshape(*x.shape[:2], rank, heads, channels)
        weight = self.param(f"{name}_norm", nn.initializers.ones, (channels,), jnp.float32)
        mean = jnp.mean(keys * keys, axis=-1, keepdims=True)
        keys = keys * jax.lax.rsqrt(mean + self.norm_eps) * weight[None, None, None, None]
        keys = jnp.repeat(keys, self.num_heads // heads, axis=3)
        shape = (self.num_heads, rank, channels)
        bias = self.param(f"{name}_bias", nn.initializers.ones, shape, jnp.float32)
        return keys + bias.swapaxes(0, 1)[None, None]


PARAMETERS: Mapping[str, Axes] = {
    **SHARED,
    **dict.fromkeys(("z_proj", "x_proj", "dt_proj", "a_proj", "trap_proj"), BY_HEADS),
    **dict.fromkeys(("b_proj", "c_proj"), ("embed", None)),
    "angle_proj": (None, None),
    **dict.fromkeys(("b_norm", "c_norm"), (None,)),
    **dict.fromkeys(("b_bias", "c_bias"), ("heads", None, None)),
    **dict.fromkeys(("mimo_x", "mimo_z", "mimo_o"), ("heads", None, None)),
    "dt_bias": ("heads",),
}


@dataclasses.dataclass(frozen=True)
class Mamba3(Entry):
    """Mamba-3.

    Attributes:
      source: where it was published.
      mimo: of the rank that a model's configuration gives (as published 4), else of rank 1.
    """

    source: str
    mimo: bool = False

    parameters = PARAMETERS
    undecayed = Entry.undecayed | {"b_norm", "c_norm", "mimo_x", "mimo_z", "mimo_o"}
    uncut_sequence = "Mamba-3's trapezoid is"

    def __call__(self, **fields: Any) -> Mamba3Mixer:
        """The published layer, with any of its fields changed by name."""
        return Mamba3Mixer(**({"mimo_rank": 4} if self.mimo else {}) | fields)

    def of_model(self, config: Config) -> Mamba3Mixer:
        """See `Entry`."""
        return Mamba3Mixer(mimo_rank=self._rank(config), **recurrent_fields(config))

    def check(self, config: Config) -> None:
        """Refuse keys too narrow to be rotated."""
        if config.key_dim < 4:
            raise ValueError(
                f"key_dim={config.key_dim}; Mamba-3 rotates half of the key channels in pairs: "
                "give at least 4."
            )

    def forward_flops(self, config: Config, context: int) -> dict[str, float]:
        """Decay, and for each of M ranks write and output: (1 + 4·M)·K·V per head."""
        del context
        return {"rule": (1 + 4 * self._rank(config)) * self.state_size(config)}

    def cut_by_tensor(self, config: Config) -> dict[str, int]:
        """Value heads; keys are replicated."""
        return {"num_heads": config.num_heads}

    def _rank(self, config: Config) -> int:
        return config.mimo_rank if self.mimo else 1
