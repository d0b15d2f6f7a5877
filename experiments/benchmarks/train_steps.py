"""A part of the gpu suite: a whole step of training, with each mixer."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from carve_jax.training.step import Batch
from experiments.measuring.rule_calls import RULES
from experiments.measuring.timing import attempt, ratio
from experiments.measuring.train_steps import (
    LAYER_SIZES,
    Training,
    cost_of,
    fitting,
    make_step,
    measure_step,
)


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


def training_program(plan: TrainPlan, mixer: str, rows: int) -> Training:
    """The compiled step, the state's initialiser and a batch, as `experiments.train` makes them.

    A plan whose model has a pattern trains that, and `mixer` is its name.

    Documents are a row long, tokens random: what they say does not change what is computed.
    """
    own = {"implementation": plan.implementation, "remat": plan.remat}
    model, init, step = make_step({"pattern": (mixer,), **plan.model, **own})

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
    return Training(compiled, init, make_batch, rows, cost_of(model.config, plan.length), {})


def fitting_program(plan: TrainPlan, mixer: str) -> Training:
    """The program with the most rows that fit on this device, of those of the plan.

    Raises:
      LeftOut: none fits.
    """
    return fitting(functools.partial(training_program, plan, mixer), tuple(plan.rows))


def measure_mixer(
    plan: TrainPlan, mixer: str, repeats: int, profile: bool = False
) -> dict[str, Any]:
    """Figures of a whole train step with one mixer, as `measure_step` gives them.

    Raises:
      LeftOut: not even the fewest rows fit on this device.
    """
    figures = measure_step(fitting_program(plan, mixer), plan.length, repeats, profile)
    return {**figures, "remat": plan.remat, "length": plan.length}


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
