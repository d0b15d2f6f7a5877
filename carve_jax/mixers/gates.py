"""The gates of the gated delta family: what they depend on, and their pure functions."""

import dataclasses

import jax
import jax.numpy as jnp

from carve_jax.shapes import Array, Float, Float32

DECAY = ("none", "constant", "scalar", "channel")
ERASE = ("none", "scalar", "channel")
WRITE = ("one", "tied", "timestep", "scalar", "channel")


@dataclasses.dataclass(frozen=True)
class GateSpec:
    """Which gates a mixer of the family has. Invalid choices raise ValueError.

    Attributes:
        decay: log-decay of the state. "none" is 0; "constant" is RetNet's log(1 − 2^(−5−h)) of
            head h; "scalar" and "channel" are −exp(A_log)·Δ with Δ = softplus(projection +
            dt_bias), one a key head or one a key channel.
        erase: the erase gate σ(projection), one a key head or one a key channel; "none" is 0.
        write: "one" is 1; "tied" is the erase gate itself; "timestep" is the decay's Δ;
            "scalar" and "channel" are σ(projection), one a value head or one a value channel.
        content: the erase gate also sees what the rule has read so far (CARVE).
        negative_eigenvalues: the erase gate ranges over [0, 2] instead of [0, 1], so that an
            edit may flip the sign of what it finds (arXiv 2411.12537).
    """

    decay: str = "channel"
    erase: str = "channel"
    write: str = "channel"
    content: bool = False
    negative_eigenvalues: bool = False

    def __post_init__(self) -> None:
        """Refuse values and pairs that mean nothing."""
        for name, allowed in (("decay", DECAY), ("erase", ERASE), ("write", WRITE)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"GateSpec: {name}={getattr(self, name)!r}; choose one of {', '.join(allowed)}."
                )
        if self.write == "tied" and self.erase != "scalar":
            raise ValueError(
                f"GateSpec: write='tied' needs a scalar erase gate, not {self.erase!r}."
            )
        if self.write == "timestep" and self.decay != "scalar":
            raise ValueError(
                f"GateSpec: write='timestep' needs a scalar decay, not {self.decay!r}."
            )
        if self.content and self.erase != "channel":
            raise ValueError(
                f"GateSpec: content=True needs a channel erase gate, not {self.erase!r}."
            )

    @property
    def erase_scale(self) -> float:
        """The largest value the erase gate can take."""
        return 2.0 if self.negative_eigenvalues else 1.0


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


def gate(logits: Float[Array, "B T H Kg"], scale: float = 1.0) -> Float[Array, "B T H Kg"]:
    """scale · σ(logits), computed in float32, in the dtype of logits."""
    return (scale * jax.nn.sigmoid(logits.astype(jnp.float32))).astype(logits.dtype)


def retention_log_decay(heads: int) -> Float32[Array, " H"]:
    """RetNet's constants, log(1 − 2^(−5−h)) for head h (arXiv 2307.08621, eq. 8)."""
    return jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(heads, dtype=jnp.float32))))


def init_a_log(rng: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Log U(1, 16), the initial A_log."""
    return jnp.log(jax.random.uniform(rng, shape, dtype, 1.0, 16.0))


def init_dt_bias(rng: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Softplus⁻¹ of exp(U(log 1e-3, log 1e-1)) floored at 1e-4: the initial dt_bias."""
    low, high = jnp.log(1e-3), jnp.log(1e-1)
    step = jnp.maximum(jnp.exp(jax.random.uniform(rng, shape, dtype, low, high)), 1e-4)
    return step + jnp.log(-jnp.expm1(-step))
