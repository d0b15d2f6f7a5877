"""A part of the gpu suite: a whole step of training, with each mixer."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.training.step import Batch, TrainState
from experiments.measuring.profiling import kernel_times
from experiments.measuring.rule_calls import RULES
from experiments.measuring.timing import (
    Carried,
    Contender,
    LeftOut,
    attempt,
    device_bytes,
    median_seconds,
    peak_bytes,
    ratio,
)
from experiments.measuring.train_steps import LAYER_SIZES, make_step


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """What is trained: gdn2_1.3B's sizes, and the most rows of `length` tokens that fit.

    Attributes:
      model: fields of the config's section `model`.
      remat: what backward computes again, as in `LMConfig`.
      rows: sizes of the batch, tried in order.
      length: tokens of a row.
      implementation: of the rule.
    """

    model: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(LAYER_SIZES))
    remat: str = "full"
    rows: tuple[int, ...] = (4, 2, 1)
    length: int = 4096
    implementation: str = "pallas"


class Training(NamedTuple):
    """A train step of one mixer.

    Attributes:
      step: (state, batch) -> (state, metrics), compiled; it donates the state.
      init: gives the first state.
      make_batch: gives a batch.
      rows: of the batch.
      left_out: larger batches that do not fit, and why.
    """

    step: jax.stages.Compiled
    init: Callable[[], TrainState]
    make_batch: Callable[[], Batch]
    rows: int
    left_out: dict[str, str]


def training_program(plan: TrainPlan, mixer: str, rows: int) -> Training:
    """The compiled step, the state's initialiser and a batch, as `experiments.train` makes them.

    Documents are a row long, tokens random: what they say does not change what is computed.
    """
    own = {"pattern": (mixer,), "implementation": plan.implementation, "remat": plan.remat}
    model, init, step = make_step({**plan.model, **own})

    def make_batch() -> Batch:
        shape, words = (rows, plan.length), model.config.vocab_size
        tokens = jax.random.randint(jax.random.key(0), shape, 0, words, jnp.int32)
        return {
            "tokens": tokens,
            "targets": jnp.roll(tokens, -1, axis=1),
            "segment_ids": jnp.zeros_like(tokens),
            "loss_mask": jnp.ones(tokens.shape, jnp.float32),
            "target_bytes": jnp.zeros_like(tokens),
        }

    compiled = step.lower(jax.eval_shape(init), jax.eval_shape(make_batch)).compile()
    return Training(compiled, init, make_batch, rows, {})


def fitting_program(plan: TrainPlan, mixer: str) -> Training:
    """The program with the most rows that fit on this device, of those of the plan.

    Raises:
      LeftOut: none fits.
    """
    limit = 0.9 * device_bytes()
    left_out: dict[str, str] = {}
    for rows in plan.rows:
        program = training_program(plan, mixer, rows)
        needed = peak_bytes(program.step)
        if needed <= limit:
            return program._replace(left_out=left_out)
        left_out[f"{rows} rows"] = f"needs {needed / 1e9:.0f} GB of {limit / 1e9:.0f}"
    raise LeftOut("; ".join(f"{rows}: {reason}" for rows, reason in left_out.items()))


def measure_mixer(
    plan: TrainPlan, mixer: str, repeats: int, profile: bool = False
) -> dict[str, Any]:
    """Seconds and peak bytes of a whole train step with one mixer; by kernel too, if asked.

    Raises:
      LeftOut: not even the fewest rows fit on this device.
    """
    program = fitting_program(plan, mixer)
    carried = Carried(program.step, program.init(), program.make_batch())
    peak = peak_bytes(program.step)
    entry = Contender(carried, (), peak)
    seconds = median_seconds({mixer: entry}, repeats)[mixer]
    found: dict[str, Any] = {}
    if profile:
        kernels = attempt(functools.partial(kernel_times, entry))
        found["kernels"] = {"left_out": kernels} if isinstance(kernels, str) else kernels
    return {
        **found,
        "median_seconds": seconds,
        "tokens_per_second": program.rows * plan.length / seconds,
        "peak_bytes": peak,
        "finite": bool(carried.state.healthy),
        "rows": program.rows,
        "left_out": program.left_out,
    }


def measure_training(plan: TrainPlan, repeats: int) -> dict[str, Any]:
    """A whole train step with GDN-2 and then with CARVE: two states at once may not fit."""
    found = {}
    for mixer in RULES:
        made = attempt(functools.partial(measure_mixer, plan, mixer, repeats))
        found[mixer] = {"left_out": made} if isinstance(made, str) else made
    return compare_mixers(plan, found)


def compare_mixers(plan: TrainPlan, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of `measure_mixer` beside each other; ratios only where the rows are as many."""
    timed = {mixer: part for mixer, part in found.items() if "median_seconds" in part}
    alike = len({part["rows"] for part in timed.values()}) == 1
    seconds = {mixer: part["median_seconds"] for mixer, part in timed.items()}
    peaks = {mixer: part["peak_bytes"] for mixer, part in timed.items()}
    return {
        "ratio": ratio(seconds, "carve", "gdn2") if alike else None,
        "peak_bytes_ratio": ratio(peaks, "carve", "gdn2") if alike else None,
        "mixers": {mixer: dict(part) for mixer, part in found.items()},
        "length": plan.length,
        "model": plan.model,
        "remat": plan.remat,
        "implementation": plan.implementation,
    }


def print_training(part: Mapping[str, Any]) -> None:
    """The ratio first, then each mixer's figures."""
    if "mixers" not in part:
        print(f"\ntrain step: left out, {part['left_out']}")
        return
    figure = "-" if part["ratio"] is None else f"{part['ratio']:.3f}"
    print(f"\n{'train step, carve / gdn2':<26} {figure:>8}")
    for mixer, found in part["mixers"].items():
        if "median_seconds" not in found:
            print(f"{mixer:<26} left out, {found['left_out']}")
            continue
        print(
            f"{mixer:<26} {1e3 * found['median_seconds']:>8.1f} ms "
            f"{found['tokens_per_second']:>10.0f} tokens/s {found['rows']} rows "
            f"{found['peak_bytes'] / 1e9:>6.1f} GB"
            f"{'' if found['finite'] else '  (loss or gradient not finite)'}"
        )
