"""The gates of the gated delta family: what they depend on, and their pure functions."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from carve_jax.shapes import Array, Float, Float32

DECAY = ("none", "constant", "scalar", "channel")
DECAY_FORM = ("softplus", "logsigmoid", "bounded")
ERASE = ("none", "scalar", "channel")
WRITE = ("one", "tied", "timestep", "scalar", "channel")
CONTENT_SOURCE = ("previous_chunk", "two_chunks_back", "previous_layer")

LOGSIGMOID_TEMPERATURE = 16.0  # GLA, arXiv 2312.06635, section 4.4
CLOSED_LOOP_FLOOR = -20.0  # exp(-20) of a state is below the rounding of float32 beside an edit
BOUNDED_FLOOR = -5.0  # KDA's safe gate in flash-linear-attention


@dataclasses.dataclass(frozen=True)
class GateSpec:
    """Which gates a mixer of the family has; every ablation is a value. Invalid ones: ValueError.

    Attributes:
      decay: log-decay g of the state, one per head ("scalar") or one per key channel ("channel");
        "none" is 0, "constant" RetNet's log(1 − 2^(−5−h)) of head h.
      decay_form: what a scalar or channel decay is made of: "softplus", −exp(A_log)·Δ with
        Δ = softplus(projection + dt_bias); "logsigmoid", log σ(projection + bias) / 16 (GLA);
        "bounded", −5·σ(exp(A_log)·(projection + dt_bias)), which never falls below −5 and so
        admits the kernels' cheaper path.
      decay_rank: width of a channel decay's low-rank projection; None for the value channels.
      erase: the erase gate σ(projection), one per head ("scalar") or one per key channel
        ("channel"); "none" is 0.
      erase_bias: initial value of a learned bias of its projection, the same for all; None for a
        projection without one, as published.
      write: "one" is 1; "tied" is the erase gate itself; "timestep" is the decay's Δ;
        "scalar" and "channel" are σ(projection), one per value head or one per value channel.
      content: the erase gate also sees what the rule has read so far (CARVE).
      content_source: whose outputs' mean that is: "previous_chunk", "two_chunks_back" or
        "previous_layer". The first, those of this layer's gate chunk before (CARVE as published):
        each gate chunk waits for the one before it, in every pass. "two_chunks_back", those of the
        one before that: a gate chunk still waits, but may be prepared while the one before it is
        being read; it sees nothing of the last L to 2L tokens. "previous_layer", those of the gate
        chunk before in the last layer below that has a content gate: b is known before the rule
        begins, which so runs as GDN-2's, in parallel; the gate sees what that layer's memory
        returned and never what its own holds. The first such layer has no content, b = σ(x), and
        its two projections do nothing.
      gate_chunk: L, tokens in a gate chunk of the content gate.
      content_rank: R, rank of the content gate.
      content_scale: factor of P_down's initial values, which at 1 keep the root mean square of
        the content; above 0, for P_up starts at zero.
      content_norm: divide the content by its root mean square.
      stop_gradient_content: no gradient through the content.
      negative_eigenvalues: the erase gate ranges over [0, 2] instead of [0, 1], so that an
        edit may flip the sign of what it finds (arXiv 2411.12537).
      closed_loop: the edit takes away a learned share, one per head, of what it finds in the
        state as it was before its decay (Comba).
    """

    decay: str = "channel"
    decay_form: str = "softplus"
    decay_rank: int | None = None
    erase: str = "channel"
    erase_bias: float | None = None
    write: str = "channel"
    content: bool = False
    content_source: str = "previous_chunk"
    gate_chunk: int = 64
    content_rank: int = 16
    content_scale: float = 1.0
    content_norm: bool = False
    stop_gradient_content: bool = False
    negative_eigenvalues: bool = False
    closed_loop: bool = False

    def __post_init__(self) -> None:
        """Refuse values and pairs that mean nothing."""
        check_choices(
            self,
            {
                "decay": DECAY,
                "decay_form": DECAY_FORM,
                "erase": ERASE,
                "write": WRITE,
                "content_source": CONTENT_SOURCE,
            },
        )
        for name in ("gate_chunk", "content_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"GateSpec: {name}={getattr(self, name)}; it must be 1 or more.")
        if not 0 < self.content_scale < math.inf:
            raise ValueError(
                f"GateSpec: content_scale={self.content_scale}; it must be above 0, and finite."
            )
        if self.erase_bias is not None:
            if not math.isfinite(self.erase_bias):
                raise ValueError(f"GateSpec: erase_bias={self.erase_bias}; it must be finite.")
            if self.erase == "none":
                raise ValueError("GateSpec: erase_bias needs an erase gate, not erase='none'.")
        if self.write == "tied" and self.erase != "scalar":
            raise ValueError(
                f"GateSpec: write='tied' needs a scalar erase gate, not {self.erase!r}."
            )
        if self.write == "timestep" and (self.decay, self.decay_form) != ("scalar", "softplus"):
            raise ValueError(
                f"GateSpec: write='timestep' needs decay='scalar' of the form 'softplus', not "
                f"{self.decay!r} of the form {self.decay_form!r}."
            )
        if self.closed_loop and (self.decay, self.erase) != ("scalar", "scalar"):
            raise ValueError(
                f"GateSpec: closed_loop=True needs a scalar decay and a scalar erase gate, not "
                f"{self.decay!r} and {self.erase!r}."
            )
        if self.content and self.erase != "channel":
            raise ValueError(
                f"GateSpec: content=True needs a channel erase gate, not {self.erase!r}."
            )

    @property
    def erase_scale(self) -> float:
        """The largest value the erase gate can take."""
        return 2.0 if self.negative_eigenvalues else 1.0

    @property
    def reads_layer_below(self) -> bool:
        """Content comes from the layer below, and this layer's goes to the one above."""
        return self.content and self.content_source == "previous_layer"

    @property
    def content_lag(self) -> int:
        """How many gate chunks back the outputs lie that the rule itself reads; 0: none."""
        if not self.content or self.reads_layer_below:
            return 0
        return 1 if self.content_source == "previous_chunk" else 2

    @property
    def log_decay_floor(self) -> float | None:
        """A bound below every log-decay, where there is one."""
        projected = self.decay in ("scalar", "channel")
        return BOUNDED_FLOOR if projected and self.decay_form == "bounded" else None


def check_choices(spec: Any, allowed: dict[str, tuple[str, ...]]) -> None:
    """Raise ValueError for a field whose value is not among those allowed."""
    for name, values in allowed.items():
        if getattr(spec, name) not in values:
            raise ValueError(
                f"{type(spec).__name__}: {name}={getattr(spec, name)!r}; "
                f"choose one of {', '.join(values)}."
            )


def timestep(
    projection: Float[Array, "B T H Kg"], dt_bias: Float32[Array, "H Kg"]
) -> Float32[Array, "B T H Kg"]:
    """Δ = softplus(projection + dt_bias), in float32."""
    return jax.nn.softplus(projection.astype(jnp.float32) + dt_bias[None, None])


def log_decay(
    step: Float32[Array, "B T H Kg"], a_log: Float32[Array, " H"]
) -> Float32[Array, "B T H Kg"]:
    """−exp(A_log)·Δ, in float32 and never positive."""
    return -jnp.exp(a_log)[None, None, :, None] * step


def logsigmoid_log_decay(projection: Float[Array, "B T H Kg"]) -> Float32[Array, "B T H Kg"]:
    """Log σ(projection) / 16, in float32: GLA's (arXiv 2312.06635, section 4.4)."""
    return jax.nn.log_sigmoid(projection.astype(jnp.float32)) / LOGSIGMOID_TEMPERATURE


def bounded_log_decay(
    projection: Float[Array, "B T H Kg"],
    dt_bias: Float32[Array, "H Kg"],
    a_log: Float32[Array, " H"],
) -> Float32[Array, "B T H Kg"]:
    """−5·σ(exp(A_log)·(projection + dt_bias)), in float32: KDA's safe gate."""
    shifted = projection.astype(jnp.float32) + dt_bias[None, None]
    return BOUNDED_FLOOR * jax.nn.sigmoid(jnp.exp(a_log)[None, None, :, None] * shifted)


def gate(logits: Float[Array, "B T H Kg"], scale: float = 1.0) -> Float[Array, "B T H Kg"]:
    """scale · σ(logits), computed in float32, in the dtype of logits."""
    return (scale * jax.nn.sigmoid(logits.astype(jnp.float32))).astype(logits.dtype)


def closed_loop_erase(
    erase: Float[Array, "B T H 1"],
    share: Float32[Array, " H"],
    log_decay: Float32[Array, "B T H 1"],
) -> Float[Array, "B T H 1"]:
    """σ(share)·erase·exp(−log_decay): what the decay has taken from the state is given back.

    The rule reads exp(log_decay)·S, and so finds σ(share)·erase of S itself. `log_decay` is at
    least `CLOSED_LOOP_FLOOR`.
    """
    scale = jax.nn.sigmoid(share)[None, None, :, None] * jnp.exp(-log_decay)
    return (erase.astype(jnp.float32) * scale).astype(erase.dtype)


def retention_log_decay(heads: int) -> Float32[Array, " H"]:
    """RetNet's constants, log(1 − 2^(−5−h)) for head h (arXiv 2307.08621, eq. 8)."""
    return jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(heads, dtype=jnp.float32))))


def init_a_log(
    rng: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32, *, least: float = 1.0
) -> Array:
    """Log U(least, 16), the initial A_log."""
    return jnp.log(jax.random.uniform(rng, shape, dtype, least, 16.0))


def init_dt_bias(rng: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Softplus⁻¹ of exp(U(log 1e-3, log 1e-1)) floored at 1e-4: the initial dt_bias."""
    low, high = jnp.log(1e-3), jnp.log(1e-1)
    step = jnp.maximum(jnp.exp(jax.random.uniform(rng, shape, dtype, low, high)), 1e-4)
    return step + jnp.log(-jnp.expm1(-step))
