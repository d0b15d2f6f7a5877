"""Tasks that a run solves or does not: how many seeds do, how soon, and an exact test of pairs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from carve_jax.evaluation import statistics
from experiments.reporting.sweep import Run, Sweep, Task


class Solved(NamedTuple):
    """How a variant fares on a task that a run solves or does not.

    Attributes:
      seeds: of the runs that count, with whether each ended at the task's threshold or beyond.
      steps: of each of those runs, the first evaluation at the threshold; inf where it did not
        solve the task.
      median_steps: of `steps`; inf where fewer than half solved it, NaN without a run.
      longest: the last step of a run.
      wins, losses: pairs with the baseline in which the variant alone, the baseline alone, did.
      p: of `statistics.sign_test_p`; NaN of the baseline, and without a pair.
      corrected_p: p after Holm's correction for the comparisons of this kind in the sweep.
    """

    task: Task
    variant: str
    seeds: dict[int, bool]
    steps: dict[int, float]
    median_steps: float
    longest: int
    wins: int
    losses: int
    p: float
    corrected_p: float

    @property
    def number(self) -> int:
        """How many seeds solved it."""
        return sum(self.seeds.values())


def count_solved(sweep: Sweep) -> list[Solved]:
    """Every variant on every task whose first metric has a threshold."""
    tasks = [task for task in sweep.tasks if task.metrics[0].solved is not None]
    found = [solved(sweep, t, v, sweep.baseline) for t in tasks for v in sweep.variants]
    tested = [i for i, each in enumerate(found) if not math.isnan(each.p)]
    corrected = statistics.holm(np.array([found[i].p for i in tested]))
    for i, p in zip(tested, corrected, strict=True):
        found[i] = found[i]._replace(corrected_p=float(p))
    return found


def solved(sweep: Sweep, task: Task, variant: str, baseline: str) -> Solved:
    """A variant, and its pairs with another one; p is not corrected."""
    own, base = (
        {run.seed: run for run in sweep.of(task, name) if sweep.fault(run) is None}
        for name in (variant, baseline)
    )
    metric = task.metrics[0]

    def is_solved(run: Run) -> bool:
        return metric.is_solved(run.final(metric.name))

    steps = {seed: _first(run, task) if is_solved(run) else math.inf for seed, run in own.items()}
    pairs = [(is_solved(own[seed]), is_solved(base[seed])) for seed in own.keys() & base.keys()]
    wins, losses = pairs.count((True, False)), pairs.count((False, True))
    tested = variant != baseline and bool(pairs)
    return Solved(
        task=task,
        variant=variant,
        seeds={seed: is_solved(run) for seed, run in own.items()},
        steps=steps,
        median_steps=_median(list(steps.values())),
        longest=max((run.last_step for run in own.values()), default=0),
        wins=wins,
        losses=losses,
        p=statistics.sign_test_p(wins, losses) if tested else math.nan,
        corrected_p=math.nan,
    )


def _first(run: Run, task: Task) -> float:
    metric = task.metrics[0]
    return next(
        step for step, (_, value) in run.curve(metric.name).items() if metric.is_solved(value)
    )


def _median(steps: Sequence[float]) -> float:
    """With runs that never came there as infinitely late."""
    if not steps:
        return math.nan
    ordered = sorted(steps)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return (low + high) / 2
