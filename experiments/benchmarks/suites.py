"""The table of suites, and what each makes of the command's flags."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from carve_jax.errors import UserError
from experiments.benchmarks import data, evaluate, ruler
from experiments.benchmarks.cpu import cpu_suite
from experiments.benchmarks.decode import decode_suite
from experiments.benchmarks.gpu import Plan, gpu_suite
from experiments.benchmarks.patterns import make_plan
from experiments.benchmarks.tune import tune_suite


class Options(NamedTuple):
    """What a suite is told.

    Attributes:
      repeats: timed rounds.
      only: parts to keep; all if empty.
      train_step: whether gpu times one.
      table: where tune writes.
      tokens: lengths at which decode, ruler and evaluate look.
      save: called with the figures so far.
    """

    repeats: int
    only: tuple[str, ...]
    train_step: bool
    table: Path
    tokens: list[str]
    save: Callable[[dict[str, Any]], None]


def run_cpu(options: Options) -> dict[str, Any]:
    """The cpu suite, which has no parts."""
    if options.only:
        others = ", ".join(name for name in SUITES if name != "cpu")
        raise UserError(f"--only belongs to --suite={others}; cpu has no parts")
    return cpu_suite(options.repeats)


def run_gpu(options: Options) -> dict[str, Any]:
    """The gpu suite, or the parts of it that were asked for."""
    plan = Plan().only(options.only)
    if not options.train_step:
        plan = dataclasses.replace(plan, train=None)
    return gpu_suite(options.repeats, options.save, plan)


def run_tune(options: Options) -> dict[str, Any]:
    """The tune suite, or the parts of it that were asked for."""
    return tune_suite(options.repeats, options.save, options.table, options.only)


def run_decode(options: Options) -> dict[str, Any]:
    """The decode suite, or the patterns of it that were asked for."""
    return decode_suite(options.save, make_plan(options.tokens, options.only))


def run_data(options: Options) -> dict[str, Any]:
    """The data suite, or the parts of it that were asked for."""
    plan = data.make_plan(options.only)
    return data.data_suite(options.repeats, options.save, plan)


def run_ruler(options: Options) -> dict[str, Any]:
    """The ruler suite, or the patterns of it that were asked for."""
    plan = make_plan(options.tokens, options.only, ruler.PLAN)
    return ruler.ruler_suite(options.save, plan)


def run_evaluate(options: Options) -> dict[str, Any]:
    """The evaluate suite, or the patterns of it that were asked for."""
    plan = evaluate.make_plan(options.tokens, options.only)
    return evaluate.evaluate_suite(options.repeats, options.save, plan)


SUITES: dict[str, Callable[[Options], dict[str, Any]]] = {
    "cpu": run_cpu,
    "gpu": run_gpu,
    "tune": run_tune,
    "decode": run_decode,
    "data": run_data,
    "ruler": run_ruler,
    "evaluate": run_evaluate,
}
