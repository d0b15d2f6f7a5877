"""A guard against spikes of the loss and the gradient norm, inside the train step.

A step is a spike where its loss or gradient norm lies above

    limit = median + factor · max(1.4826 · MAD, 0.001 · |median|)

of the last `window` steps that were none; MAD is the median absolute deviation, and 1.4826 · MAD
the standard deviation where values are normal (Rousseeuw and Croux, 1993), whatever the outliers.
The window is part of the train state: the verdict of a step is known before its update is applied,
and a resumed run judges as the run that never stopped.
"""

import dataclasses

import jax.numpy as jnp
from flax import struct

from carve_jax.errors import UserError
from carve_jax.files import shown
from carve_jax.ranges import check_number
from carve_jax.shapes import Array, Bool, Float32, Int32

ACTIONS = ("skip", "rewind", "stop")


@struct.dataclass
class GuardState:
    """The figures of the last steps that were applied, in a ring."""

    losses: Float32[Array, " window"]
    grad_norms: Float32[Array, " window"]
    applied: Int32[Array, ""]  # steps with targets that were applied, ever
    in_a_row: Int32[Array, ""]  # spikes since the last of them


@struct.dataclass
class Verdict:
    """What the guard made of one step."""

    spike: Bool[Array, ""]
    loss: Float32[Array, ""]
    loss_limit: Float32[Array, ""]  # infinite while the window fills, or without a factor
    grad_norm_limit: Float32[Array, ""]
    in_a_row: Int32[Array, ""]  # spikes up to this step, it included


@dataclasses.dataclass(frozen=True)
class Guard:
    """The config section `guard`.

    Attributes:
      loss_factor: see `limit` above; 0 does not watch the loss.
      grad_factor: the same of the gradient norm, before clipping.
      window: steps that a step is held against; until it is full only NaN and infinity count.
      action: "skip": the update is not applied; "rewind": back to the newest checkpoint, and on
        with the data after the spike; "stop": the run ends.
      limit: spikes in a row, or rewinds to one checkpoint, after which the run stops all the same.

    Raises:
      UserError: a value out of range.
    """

    loss_factor: float = 0.0
    grad_factor: float = 0.0
    window: int = 100
    action: str = "skip"
    limit: int = 10

    def __post_init__(self) -> None:
        for name in ("loss_factor", "grad_factor", "window", "limit"):
            check_number(f"guard.{name}", getattr(self, name))
        if self.action not in ACTIONS:
            raise UserError(
                f"config.guard.action is {shown(self.action)}, but must be one of "
                f"{', '.join(ACTIONS)}"
            )

    @property
    def on(self) -> bool:
        """Whether anything is watched; otherwise NaN and infinity stop the run, and no more."""
        return self.loss_factor > 0 or self.grad_factor > 0

    @property
    def skips(self) -> bool:
        """Whether training goes on from the very state before a spike."""
        return self.on and self.action == "skip"

    def init(self) -> GuardState:
        """The state before the first step."""
        zeros = jnp.zeros(self.window, jnp.float32)
        count = jnp.zeros((), jnp.int32)
        return GuardState(losses=zeros, grad_norms=zeros, applied=count, in_a_row=count)

    def judge(
        self,
        state: GuardState,
        loss: Float32[Array, ""],
        grad_norm: Float32[Array, ""],
        finite: Bool[Array, ""],
        has_targets: Bool[Array, ""] | bool = True,
    ) -> tuple[Verdict, GuardState]:
        """Whether a step is a spike, and the state after it; pure, to be traced.

        Args:
          state: before the step.
          loss: in nats per token.
          grad_norm: before clipping.
          finite: whether all of the step is; one that is not is always a spike.
          has_targets: whether any loss was counted; a step without has no figures to remember.
        """
        full = state.applied >= self.window
        loss_limit = _limit(state.losses, self.loss_factor, full)
        grad_norm_limit = _limit(state.grad_norms, self.grad_factor, full)
        spike = ~finite | (loss > loss_limit) | (grad_norm > grad_norm_limit)
        passed = jnp.where(has_targets, 0, state.in_a_row)
        in_a_row = jnp.where(spike, state.in_a_row + 1, passed)
        place = state.applied % self.window
        noted = ~spike & has_targets

        def note(ring: Array, value: Array) -> Array:
            return ring.at[place].set(jnp.where(noted, value, ring[place]))

        after = GuardState(
            losses=note(state.losses, loss),
            grad_norms=note(state.grad_norms, grad_norm),
            applied=state.applied + jnp.where(noted, 1, 0),
            in_a_row=in_a_row,
        )
        return Verdict(spike, loss, loss_limit, grad_norm_limit, in_a_row), after

    def why(self, verdict: Verdict, grad_norm: float) -> str:
        """Says in words why a step (on the host) is a spike."""
        found = []
        for name, value, limit in (
            ("loss", float(verdict.loss), float(verdict.loss_limit)),
            ("gradient norm", float(grad_norm), float(verdict.grad_norm_limit)),
        ):
            if value > limit:
                found.append(f"{name} {value:.4g} is above its limit of {limit:.4g}")
        return " and ".join(found) or "the loss or a gradient is NaN or infinite"


def _limit(values: Float32[Array, " window"], factor: float, full: Array) -> Float32[Array, ""]:
    if factor == 0:
        return jnp.full((), jnp.inf, jnp.float32)
    median = jnp.median(values)
    spread = 1.4826 * jnp.median(jnp.abs(values - median))
    return jnp.where(
        full, median + factor * jnp.maximum(spread, 1e-3 * jnp.abs(median)), jnp.inf
    ).astype(jnp.float32)
