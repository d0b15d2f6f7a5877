"""One optimizer step as a pure function of (state, batch), and what is measured in it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct

from carve_jax.model import LanguageModel
from carve_jax.shapes import Array, Bool, Float32, Int32
from carve_jax.training.compiling import CompilerOptions
from carve_jax.training.guard import Guard, GuardState, Verdict
from carve_jax.training.loss import LossSums, next_token_loss
from carve_jax.training.norms import Norms, group_of, norms_by_group

Batch = Mapping[str, Array]
LossFn = Callable[[Any, Batch], LossSums]


@struct.dataclass
class TrainState:
    """All that training carries from one step to the next, except the data iterator.

    `healthy` turns False at the first loss or gradient that is not finite (or, where the guard does
    not skip it, the first spike) and stays so: from then on no update is applied, and params and
    opt_state remain those of the last good step.
    """

    step: Int32[Array, ""]  # updates applied
    params: Any
    opt_state: Any
    healthy: Bool[Array, ""]
    guard: GuardState


@struct.dataclass
class StepMetrics:
    """What one step measured, still on the device."""

    sums: LossSums
    grad_norm: Float32[Array, ""]  # before clipping
    param_norm: Float32[Array, ""]  # before the update
    learning_rate: Float32[Array, ""]
    finite: dict[str, Bool[Array, ""]]  # of "the loss", "the gradient norm", and each module
    verdict: Verdict
    norms: dict[str, Norms] | None  # of every layer, if asked for


def init_state(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    rng: Array,
    tokens: Array,
    guard: Guard | None = None,
) -> TrainState:
    """The state before the first step; trace it with `jax.jit` or `jax.eval_shape`."""
    params = model.init(rng, tokens)["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        healthy=jnp.ones((), jnp.bool_),
        guard=(guard or Guard()).init(),
    )


def make_loss(model: LanguageModel, *, loss_chunk: int, z_loss: float = 0.0) -> LossFn:
    """A pure function (params, batch) -> `LossSums`."""

    def loss(params: Any, batch: Batch) -> LossSums:
        variables = {"params": params}

        def head(x: Array) -> Array:
            return cast(Array, model.apply(variables, x, method="logits"))

        hidden, _ = model.apply(
            variables, batch["tokens"], segment_ids=batch["segment_ids"], method="hidden"
        )
        return next_token_loss(
            head,
            hidden,
            batch["targets"],
            batch["loss_mask"],
            batch.get("target_bytes", jnp.zeros_like(batch["targets"])),
            loss_chunk=loss_chunk,
            z_loss=z_loss,
        )

    return loss


def gradient(
    loss: LossFn, params: Any, batch: Batch, accumulate_steps: int
) -> tuple[Any, LossSums]:
    """The gradient of the mean loss per token, and the batch's sums.

    With `accumulate_steps` > 1 the rows are taken in that many turns. Gradients of sums are added
    and divided by all the tokens once, so the result is that of the whole batch (to rounding)
    however unevenly the counted tokens are spread.
    """

    def objective(params: Any, batch: Batch) -> tuple[Array, LossSums]:
        sums = loss(params, batch)
        return sums.nats + sums.penalty, sums

    grad = jax.grad(objective, has_aux=True)
    if accumulate_steps == 1:
        total, sums = grad(params, batch)
    else:
        # Every turn takes rows from the whole batch, so that rows keep their devices.
        turns = jax.tree.map(
            lambda x: x.reshape(-1, accumulate_steps, *x.shape[1:]).swapaxes(0, 1), dict(batch)
        )

        def add_turn(carry: Any, turn: Batch):
            return jax.tree.map(jnp.add, carry, grad(params, turn)), None

        first = jax.tree.map(lambda x: x[0], turns)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, params, first)
        )
        (total, sums), _ = jax.lax.scan(add_turn, zeros, turns)
    tokens = jnp.maximum(sums.tokens, 1.0)
    return jax.tree.map(lambda g: g / tokens, total), sums


def finite_by_group(grads: Any, sums: LossSums) -> dict[str, Bool[Array, ""]]:
    """Whether the loss, and each parameter group's gradient, is free of NaN and infinity.

    A group is that of `group_of`, repeats of a scanned layer together.
    """
    groups: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        groups.setdefault(group_of(path), []).append(jnp.all(jnp.isfinite(leaf)))
    finite = {name: jnp.all(jnp.stack(flags)) for name, flags in groups.items()}
    return {"the loss": jnp.isfinite(sums.nats + sums.penalty), **finite}


def select(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    """The one tree or the other."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)


def measure_norms(grads: Any, params: Any, updates: Any) -> dict[str, Norms]:
    """Norms of every layer: gradients before clipping, parameters before the update, updates."""
    trees = {"grad_norm": grads, "param_norm": params, "update_norm": updates}
    return {name: norms_by_group(tree) for name, tree in trees.items()}


def make_train_step(
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    accumulate_steps: int = 1,
    state_shardings: Any = None,
    guard: Guard | None = None,
    with_norms: bool = False,
    compiler_options: CompilerOptions = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """A jitted (state, batch) -> (state, metrics) that reuses the old state's memory.

    With `state_shardings`, a tree like the state, the new state lies as the old one did. A step
    whose loss or gradient is not finite leaves the state as it was but for `healthy`; a spike that
    `guard` skips, as it was but for the guard's own count. `with_norms` measures every layer's.
    `compiler_options` are XLA's.
    """
    guard = guard or Guard()

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        grads, sums = gradient(loss, state.params, batch, accumulate_steps)
        grad_norm = optax.tree.norm(grads)
        finite = finite_by_group(grads, sums) | {"the gradient norm": jnp.isfinite(grad_norm)}
        all_finite = jnp.all(jnp.stack(list(finite.values())))
        mean = sums.nats / jnp.maximum(sums.tokens, 1.0)
        has_targets = sums.tokens > 0
        verdict, judged = guard.judge(state.guard, mean, grad_norm, all_finite, has_targets)
        good = ~verdict.spike if guard.on else all_finite
        healthy = state.healthy & (good | guard.skips)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updated = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            healthy=healthy,
            guard=judged,
        )
        metrics = StepMetrics(
            sums=sums,
            grad_norm=grad_norm,
            param_norm=optax.tree.norm(state.params),
            learning_rate=jnp.asarray(schedule(state.step), jnp.float32),
            finite=finite,
            verdict=verdict,
            norms=measure_norms(grads, state.params, updates) if with_norms else None,
        )
        counted = select(healthy, judged, state.guard)
        kept = dataclasses.replace(state, healthy=healthy, guard=counted)
        return select(state.healthy & good, updated, kept), metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(state_shardings, None),
        compiler_options=compiler_options,
    )
