"""One run's figures: what its step holds of a device, sends and computes, and what that costs."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from carve_jax.errors import UserError
from carve_jax.model import LanguageModel, count_parameters
from carve_jax.placement import check_mesh
from carve_jax.sharding import make_mesh
from carve_jax.training.run import Steps, build_steps, implementation_of, make_model
from carve_jax.training.settings import Settings, read_settings
from experiments.measuring.timing import peak_bytes
from experiments.planning import budget
from experiments.planning.collectives import Collective, collectives
from experiments.planning.memory_traffic import traffic
from experiments.planning.rates import Rates
from experiments.planning.target import Target, kernels_for, traced_for

MOST = 12  # collectives that the record names


def plan_run(
    config: ConfigDict, target: Target, sizes: dict[str, int], rates: Rates
) -> dict[str, Any]:
    """One model's figures: bytes of a device, bytes sent, FLOPs, and the least seconds per step.

    Raises:
      UserError: a bad config, or a mesh that the model or the batch does not fit.
    """
    settings = read_settings(config)
    with kernels_for(target):
        model, mesh, steps = make_steps(config, settings, target, sizes)
        with traced_for(target):
            memory = budget.shape_bytes(config, model.config, steps.state_shapes, sizes)
        implementation = implementation_of(
            model.config, settings.batch_size, settings.sequence_length
        )
        parameters = count_parameters(steps.state_shapes.params)["total"]
        step = budget.work(config, model.config)
        found: list[Collective] = []
        moved = None
        if mesh is None:
            sent = budget.estimated_sent_bytes(model.config, parameters, sizes, step)
            with traced_for(target):
                working = budget.estimated_working_bytes(config, model.config, sizes)
        else:
            compiled = compile_step(config, steps)
            working = peak_bytes(compiled) - sum(memory.values())
            text = compiled.as_text() or ""
            found = collectives(text, target.chips)
            moved = traffic(text) if target.how == "gpu" else None
            sent = sent_bytes(found)
    weights = budget.gathered_bytes(model.config, parameters, sizes)
    return {
        "parameters": parameters,
        "implementation": implementation,
        "bytes": memory | {"working memory": working, "peak": sum(memory.values()) + working},
        "limit": target.chip.memory,
        "bytes_sent": sent,
        "collectives": [each._asdict() for each in largest(found)],
        "traffic": moved,
        "traffic_seconds": None if moved is None else moved / rates.bandwidth,
        **step._asdict(),
        "floors": budget.least_seconds(
            step, memory, sent, rates, weights=weights, devices=target.chips
        ),
    }


def make_steps(
    config: ConfigDict, settings: Settings, target: Target, sizes: dict[str, int]
) -> tuple[LanguageModel, Any, Steps]:
    """The model, the mesh of the target's devices (None where nothing compiles) and the steps.

    Raises:
      UserError: a mesh that the model or the batch does not fit.
    """
    model = make_model(config)
    try:
        check_mesh(model.config, sizes, settings.rows, settings.sequence_length)
    except ValueError as error:
        raise UserError(f"--mesh: {error}") from error
    mesh = None if target.devices is None else make_mesh(sizes, target.devices)
    return model, mesh, build_steps(settings.step_settings, mesh)


def compile_step(config: ConfigDict, steps: Steps) -> jax.stages.Compiled:
    """The train step for a whole batch, as training runs it."""
    whole = jax.ShapeDtypeStruct((config.batch_size, config.sequence_length), jnp.int32)
    batch = dict.fromkeys(budget.BATCH, whole)
    batch["loss_mask"] = jax.ShapeDtypeStruct(whole.shape, jnp.float32)
    return cast(Any, steps.train_step).lower(steps.state_shapes, batch).compile()


def sent_bytes(found: list[Collective]) -> dict[str, float]:
    """Bytes that a device sends per step, by kind of collective."""
    sent: dict[str, float] = {}
    for each in found:
        sent[each.kind] = sent.get(each.kind, 0.0) + each.sent * each.turns
    return sent


def largest(found: list[Collective]) -> list[Collective]:
    """The collectives that send most in a step, first those of most bytes."""
    return sorted(found, key=lambda each: -each.sent * each.turns)[:MOST]


def money(
    figures: dict[str, Any], target: Target, *, tokens: float, price: float, utilisation: float
) -> dict[str, Any]:
    """Seconds per step, tokens per day, days and cost, at the floor and at the assumed utilisation.

    Args:
      figures: of `plan_run`.
      target: what it was planned for.
      tokens: to train on.
      price: of one chip per hour.
      utilisation: share of the chips' peak that the model's arithmetic is assumed to reach.
    """
    least = figures["floors"]["all"]
    peak = target.chips * target.chip.flops * utilisation
    likely = max(least, figures["tokens"] * figures["model_flops"] / peak)

    def told(seconds: float) -> dict[str, float]:
        a_day = 86400 * figures["tokens"] / seconds
        days = tokens / a_day
        cost = days * 24 * target.chips * price
        return {"step_seconds": seconds, "tokens_a_day": a_day, "days": days, "cost": cost}

    return {"at_the_floor": told(least), "assumed": told(likely)}
