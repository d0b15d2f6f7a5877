"""A whole train step, at any sizes, to be compiled or timed: ours, and the same model of others."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from carve_jax.accounting import forward_flops, parameter_shapes, train_flops
from carve_jax.config import LMConfig
from carve_jax.model import LanguageModel, count_parameters
from carve_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from carve_jax.training.reports.utilisation import peak_flops
from carve_jax.training.run import make_init
from carve_jax.training.settings import make_model_config
from carve_jax.training.step import TrainState, make_loss, make_train_step
from configs.base import get_config
from experiments.measuring.profiling import kernel_times
from experiments.measuring.timing import (
    Carried,
    Contender,
    LeftOut,
    attempt,
    device_bytes,
    median_seconds,
    peak_bytes,
)

LAYER_SIZES = {  # of gdn2_1.3B
    "vocab_size": 32000, "d_model": 2304, "layers": 18, "mlp_dim": 6208, "num_heads": 16,
    "key_dim": 128, "value_dim": 128,
}  # fmt: skip
# Models of 1.3B parameters by name, which is that of their config; the most wanted first.
MODELS = ("gdn2", "carve", "gdn2_swa", "transformer", "kda", "gdn", "mamba2")


class TrainStep(NamedTuple):
    """What a step is made of.

    Attributes:
      model: that is trained.
      init: gives the first state.
      step: (state, batch) -> (state, metrics), jitted; it donates the state.
    """

    model: LanguageModel
    init: Callable[[], TrainState]
    step: Any


class Cost(NamedTuple):
    """What a model of any project costs, counted alike for all.

    Attributes:
      parameters: in all.
      flops: of the model per token of training, 3 · (2 · matrices + rule + attention). Matrices are
        all parameters of linear maps, the head's too and the embedding's not; the rule counts what
        the recurrence itself needs (`carve_jax.accounting`). What is computed again, and what a
        kernel does besides, is not counted.
    """

    parameters: int
    flops: float


class Training(NamedTuple):
    """A compiled train step.

    Attributes:
      step: (state, batch) -> (state, metrics), compiled; it donates the state, which says by its
        `healthy` whether all losses and gradients so far were finite.
      init: gives the first state.
      make_batch: gives a batch.
      rows: of the batch.
      cost: of the model.
      left_out: larger batches that do not fit, and why.
    """

    step: jax.stages.Compiled
    init: Callable[[], Any]
    make_batch: Callable[[], Any]
    rows: int
    cost: Cost
    left_out: dict[str, str]


def model_fields(name: str) -> dict[str, Any]:
    """What one of MODELS has otherwise than the base config: sizes and pattern, without remat."""
    model = importlib.import_module(f"configs.{name}_1b3").get_config().model.to_dict()
    base = get_config().model.to_dict()
    changed = {key: value for key, value in model.items() if value != base[key] and key != "remat"}
    return {**changed, "pattern": model["pattern"]}


def model_config(fields: Mapping[str, Any]) -> LMConfig:
    """The base config's model with these fields."""
    config = get_config()
    given = {key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}  # from JSON
    config.model.update(given)
    return make_model_config(config)


def recipe() -> OptimizerConfig:
    """The optimizer of every step."""
    return OptimizerConfig(**get_config().optimizer)


def make_step(fields: Mapping[str, Any]) -> TrainStep:
    """The step of the base config with these fields of its section `model`."""
    config = get_config()
    model = LanguageModel(model_config(fields))
    schedule = make_schedule(recipe(), config.steps)
    optimizer = make_optimizer(recipe(), schedule)
    loss = make_loss(model, loss_chunk=config.loss_chunk, z_loss=config.z_loss)
    init = make_init(model, optimizer, config.seed)
    return TrainStep(model, init, make_train_step(loss, optimizer, schedule))


def cost_of(config: LMConfig, length: int, others: tuple[int, int] | None = None) -> Cost:
    """The cost of a model in training on rows of `length` tokens.

    Args:
      config: of ours; another project's model has its mixers and their sizes.
      length: tokens of a row.
      others: another project's parameters, and those of its matrices.
    """
    config = dataclasses.replace(config, implementation="chunked")  # shapes alone; no kernel
    forward = forward_flops(config, length)
    if others is None:
        parameters = count_parameters(parameter_shapes(config))["total"]
    else:
        parameters, forward["projections"] = others[0], 2.0 * others[1]
    return Cost(parameters, train_flops(forward))


def fitting(make: Callable[[int], Training], sizes: tuple[int, ...]) -> Training:
    """The program with the most rows that fit on this device, of these sizes in their order.

    Raises:
      LeftOut: none fits.
    """
    limit = 0.9 * device_bytes()
    left_out: dict[str, str] = {}
    for rows in sizes:
        program = make(rows)
        needed = peak_bytes(program.step)
        if needed <= limit:
            return program._replace(left_out=left_out)
        left_out[f"{rows} rows"] = f"needs {needed / 1e9:.0f} GB of {limit / 1e9:.0f}"
    raise LeftOut("; ".join(f"{rows}: {reason}" for rows, reason in left_out.items()))


def measure_step(
    program: Training, length: int, repeats: int, profile: bool = False
) -> dict[str, Any]:
    """Seconds, peak bytes and utilisation of a compiled step; by kernel too, if asked."""
    carried = Carried(program.step, program.init(), program.make_batch())
    peak = peak_bytes(program.step)
    entry = Contender(carried, (), peak)
    seconds = median_seconds({"step": entry}, repeats)["step"]
    found: dict[str, Any] = {}
    if profile:
        kernels = attempt(functools.partial(kernel_times, entry))
        found["kernels"] = {"left_out": kernels} if isinstance(kernels, str) else kernels
    kind = jax.devices()[0].device_kind
    return {
        **found,
        **step_figures(seconds, program.rows, length, program.cost, kind),
        "peak_bytes": peak,
        "finite": bool(carried.state.healthy),
        "left_out": program.left_out,
    }


def step_figures(
    seconds: float, rows: int, length: int, cost: Cost, device_kind: str
) -> dict[str, Any]:
    """What the seconds of a step come to.

    `mfu` is the model FLOPs utilisation: the share of the device's dense bfloat16 peak, as its
    datasheet has it, that the FLOPs of `Cost` take; None for a device that is not in the table.
    """
    rate, peak = rows * length / seconds, peak_flops(device_kind)
    return {
        "median_seconds": seconds,
        "tokens_per_second": rate,
        "rows": rows,
        "parameters": cost.parameters,
        "model_flops_per_token": cost.flops,
        "mfu": None if peak is None else rate * cost.flops / peak,
    }
