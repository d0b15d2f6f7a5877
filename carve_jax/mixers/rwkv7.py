"""RWKV-7's time mixing, on the gated delta rule."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from carve_jax.mixers.base import fan_in_uniform, l2_normalize
from carve_jax.mixers.entry import (
    BY_HEADS,
    SHARED,
    Config,
    Entry,
    key_heads,
    recurrent_fields,
)
from carve_jax.ops.removal import removal_rule
from carve_jax.ops.short_conv import short_conv
from carve_jax.shapes import Array, Float, Float32, Int32
from carve_jax.sharding import Axes, per_device, spec

FASTEST = -math.exp(-0.5)  # no log-decay is below it
# Of each interpolation with the last token: the power of its initial ramp over the channels.
RAMPS = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}


class RWKV7Cache(NamedTuple):
    """The last input, and the state of the rule."""

    shift: Float[Array, "B 1 D"]
    state: Float32[Array, "B N K V"]


class RWKV7Mixer(nn.Module):
    """The time mixing of RWKV-7 (arXiv 2503.14456), as the first layer has it.

    In pseudo-code, for one head; `lerp(x, μ)` is x + (x_before − x) ⊙ μ, with x_before the
    token before, and every name has a μ of its own::

        r, k, v = lerp(x, μ_r) W_r, lerp(x, μ_k) W_k, lerp(x, μ_v) W_v
        g = −exp(−½) · σ(tanh(lerp(x, μ_w) W_down) W_up + bias)     # [K], log-decay
        a = σ(lerp(x, μ_a) A_down A_up + bias)                      # [K], strength of removal
        κ = l2(k ⊙ k_k)                                             # [K], removal key
        k = k ⊙ (1 + (a − 1) ⊙ k_a)                                 # [K], replacement key
        for every token:
            S = Diag(exp g) S − (a ⊙ κ)ᵀ (κ S) + kᵀ v               # κ S of the S before
            o = r S
        o = groupnorm(o) ⊙ o_norm + o_norm_bias + (Σ r ⊙ r_k ⊙ k) · v
        y = concatenate heads of o ⊙ σ(lerp(x, μ_g) G_down) G_up
        return y W_o

    Left out: the layers after the first mix their values with those of the first, which a mixer
    by itself does not see. The channel mixing is the model's MLP. Vectors start as those of the
    official first layer, matrices uniform in ±1/√fan_in. Parameters are float32, products are in
    `compute_dtype`; gates, norm and state are float32.

    Attributes:
      num_heads: value heads, N.
      key_dim: channels of a key head, K.
      value_dim: channels of a value head, V.
      num_key_heads: heads of all but the values, H, a divisor of N; None for N, as published.
      width: of the input, D; None for N·V, as published.
      norm_eps: of the group norm, times V.
      output_scale: factor of the output projection's initial values.
      compute_dtype: "float32" or "bfloat16".
      implementation: of the rule; None for the best one here.
      chunk_size: tokens in a tile of the rule, to which a token counts as two.
    """

    num_heads: int
    key_dim: int
    value_dim: int
    num_key_heads: int | None = None
    width: int | None = None
    norm_eps: float = 1e-5
    output_scale: float = 1.0
    compute_dtype: str = "float32"
    implementation: str | None = None
    chunk_size: int = 64

    @property
    def key_heads(self) -> int:
        """Heads of queries, keys and gates."""
        return self.num_heads if self.num_key_heads is None else self.num_key_heads

    @nn.nowrap
    def init_cache(self, batch: int, max_length: int) -> RWKV7Cache:
        """An empty cache, of one size whatever `max_length` is."""
        del max_length
        width = self.num_heads * self.value_dim if self.width is None else self.width
        shape = (batch, self.num_heads, self.key_dim, self.value_dim)
        shift = jnp.zeros((batch, 1, width), jnp.dtype(self.compute_dtype))
        return RWKV7Cache(shift, jnp.zeros(shape, jnp.float32))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: RWKV7Cache | None = None,
        segment_ids: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], RWKV7Cache | None]:
        """Mix `x`; see `Mixer`."""
        if self.num_heads % self.key_heads:
            raise ValueError(
                f"num_key_heads={self.key_heads} does not divide num_heads={self.num_heads}."
            )
        keys, values = self.key_heads * self.key_dim, self.num_heads * self.value_dim
        # The token before: a convolution that weighs it alone.
        taps = jnp.broadcast_to(jnp.array([[1.0], [0.0]], jnp.float32), (2, x.shape[-1]))
        past = None if cache is None else cache.shift
        before, shift = short_conv(x, taps, cache=past, segment_ids=segment_ids)
        mixed = {name: self._lerp(name, x, before) for name in RAMPS}

        # Queries [B, T, H, K], keys [B, T, H, K], values [B, T, N, V].
        query = self._keys(self._linear("r_proj", keys)(mixed["r"]))
        raw = self._keys(self._linear("k_proj", keys)(mixed["k"])).astype(jnp.float32)
        value = self._linear("v_proj", values)(mixed["v"])
        value = value.reshape(*x.shape[:2], self.num_heads, self.value_dim)
        # Log-decay and strength of removal [B, T, H, K], in float32.
        hidden = jnp.tanh(self._linear("w_down", self._rank(2.5, x))(mixed["w"]))
        log_decay = FASTEST * jax.nn.sigmoid(self._gate("w", hidden, _decay_bias))
        hidden = self._linear("a_down", self._rank(2.5, x))(mixed["a"])
        strength = jax.nn.sigmoid(self._gate("a", hidden, _strength_bias))
        # What is removed, and what replaces it [B, T, H, K].
        removal = l2_normalize(raw * self._vector("k_k", _removal_scale))
        mix = self._vector("k_a", nn.initializers.constant(1.02))
        key = raw * (1 + (strength - 1) * mix)

        output, state = self._rule(
            (query, removal.astype(value.dtype), key.astype(value.dtype), value),
            (log_decay, strength),
            None if cache is None else cache.state,
            segment_ids,
        )
        # A direct path from key to query around the state [B, T, N, 1].
        weight = self._vector("r_k", nn.initializers.constant(-0.04))
        bonus = jnp.sum(query.astype(jnp.float32) * weight * key, axis=-1, keepdims=True)
        bonus = jnp.repeat(bonus, self.num_heads // self.key_heads, axis=2)
        output = self._normed(output) + (bonus * value.astype(jnp.float32)).reshape(
            *x.shape[:2], values
        )
        hidden = jax.nn.sigmoid(self._linear("g_down", self._rank(5.0, x))(mixed["g"]))
        output = output * self._linear("g_up", values)(hidden).astype(jnp.float32)
        y = self._linear("o_proj", x.shape[-1], scale=self.output_scale)(
            output.astype(self.compute_dtype)
        )
        return y, None if cache is None else RWKV7Cache(shift, state)

    def _rule(
        self,
        arrays: tuple[Array, ...],
        gates: tuple[Array, ...],
        state: Array | None,
        segment_ids: Array | None,
    ) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
        """The rule; a mesh cuts it by rows and heads, and nothing is sent."""

        def rule(arrays: Any, gates: Any, state: Any, segment_ids: Any) -> tuple[Array, Array]:
            return removal_rule(
                *arrays,
                *gates,
                initial_state=state,
                segment_ids=segment_ids,
                chunk_size=self.chunk_size,
                implementation=self.implementation,
            )

        by_head, memory = spec("batch", None, "heads", None), spec("batch", "heads", None, None)
        in_specs = (
            (by_head,) * 4,
            (by_head,) * 2,
            None if state is None else memory,
            None if segment_ids is None else spec("batch", None),
        )
        run = per_device(rule, in_specs, (by_head, memory))
        return run(arrays, gates, state, segment_ids)

    def _lerp(self, name: str, x: Array, before: Array) -> Float[Array, "B T D"]:
        """`x` mixed with the token before, each channel by a share of its own."""

        def ramp(rng: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            del rng
            return 1 - (jnp.arange(shape[0], dtype=dtype) / shape[0]) ** RAMPS[name]

        share = self.param(f"x_{name}", ramp, (x.shape[-1],), jnp.float32)
        return x + (before - x) * share.astype(x.dtype)[None, None]

    def _linear(
        self, name: str, features: int, *, bias: Any = None, scale: float = 1.0
    ) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=bias is not None,
            dtype=jnp.dtype(self.compute_dtype),
            kernel_init=fan_in_uniform(scale),
            bias_init=nn.initializers.zeros if bias is None else bias,
            name=name,
        )

    def _rank(self, times: float, x: Array) -> int:
        """Width of a low-rank projection: `times` · √D in whole thirty-seconds."""
        return max(32, round(times * x.shape[-1] ** 0.5 / 32) * 32)

    def _gate(self, name: str, hidden: Array, bias: Any) -> Float32[Array, "B T H K"]:
        """The logits of a gate out of its low-rank projection."""

        def init(rng: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            del rng
            return bias(shape[0], self.key_dim).astype(dtype)

        width = self.key_heads * self.key_dim
        return self._keys(self._linear(f"{name}_up", width, bias=init)(hidden)).astype(jnp.float32)

    def _vector(self, name: str, init: Any) -> Float32[Array, "1 1 H K"]:
        """One number per key channel."""
        shape = (self.key_heads * self.key_dim,)
        vector = self.param(name, init, shape, jnp.float32)
        return vector.reshape(1, 1, self.key_heads, self.key_dim)

    def _keys(self, x: Float[Array, "B T keys"]) -> Float[Array, "B T H K"]:
        return x.reshape(*x.shape[:2], self.key_heads, self.key_dim)

    def _normed(self, output: Float[Array, "B T N V"]) -> Float32[Array, "B T N*V"]:
        """Group norm, each head a group."""
        wide = output.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.value_dim * self.norm_eps)
        shape = (self.num_heads * self.value_dim,)
        weight = self.param("o_norm", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("o_norm_bias", nn.initializers.zeros, shape, jnp.float32)
        flat = normed.reshape(*output.shape[:2], -1)
        return flat * weight[None, None] + bias[None, None]


def _ramp(width: int) -> Float32[Array, " width"]:
    """A line from 0 to 1 over the channels."""
    return jnp.arange(width, dtype=jnp.float32) / max(1, width - 1)


def _zigzag(width: int, key_dim: int) -> Float32[Array, " width"]:
    """A line from −1 to 1 over the channels of each head, squared with its sign kept."""
    line = 2 * (jnp.arange(width) % key_dim) / max(1, key_dim - 1) - 1
    return line * jnp.abs(line)


def _decay_bias(width: int, key_dim: int) -> Float32[Array, " width"]:
    return -5.5 + 6 * _ramp(width) + 2.5 * _zigzag(width, key_dim)


def _strength_bias(width: int, key_dim: int) -> Float32[Array, " width"]:
    return -0.19 + 0.3 * _zigzag(width, key_dim) + 0.4 * (_ramp(width) - 0.5)


def _removal_scale(rng: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    del rng
    return (0.71 - 0.1 * (_ramp(shape[0]) - 0.5)).astype(dtype)


PARAMETERS: Mapping[str, Axes] = {
    **SHARED,
    **dict.fromkeys((f"x_{name}" for name in RAMPS), (None,)),
    **dict.fromkeys(("r_proj", "k_proj"), ("embed", "key_heads")),
    "v_proj": BY_HEADS,
    **dict.fromkeys(("w_down", "a_down", "g_down"), (None, None)),
    **dict.fromkeys(("w_up", "a_up"), (None, "key_heads")),
    "g_up": (None, "heads"),
    **dict.fromkeys(("k_k", "k_a", "r_k"), ("key_heads",)),
    "o_norm_bias": (None,),
}


@dataclasses.dataclass(frozen=True)
class RWKV7(Entry):
    """RWKV-7."""

    source: str

    parameters = PARAMETERS
    undecayed = Entry.undecayed | {"k_k", "k_a", "r_k"} | {f"x_{name}" for name in RAMPS}
    uncut_sequence = "RWKV-7's rule is"

    def __call__(self, **fields: Any) -> RWKV7Mixer:
        """The published layer, with any of its fields changed by name."""
        return RWKV7Mixer(**fields)

    def of_model(self, config: Config) -> RWKV7Mixer:
        """See `Entry`."""
        return RWKV7Mixer(width=config.d_model, **recurrent_fields(config))

    def forward_flops(self, config: Config, context: int) -> dict[str, float]:
        """Decay, read, removal, write and output: 9·K·V per head."""
        del context
        return {"rule": 9 * self.state_size(config)}

    def cut_by_tensor(self, config: Config) -> dict[str, int]:
        """Value heads, and those of all else."""
        return {"num_heads": config.num_heads, "num_key_heads": key_heads(config)}
