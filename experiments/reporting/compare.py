"""Every variant against the baseline on every task and metric, and what may be said of each."""

import enum
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from carve_jax.evaluation import statistics
from carve_jax.evaluation.statistics import Paired
from experiments.reporting.sweep import Metric, Run, Sweep, Task


class Verdict(enum.Enum):
    """What a comparison shows, in the words that a table gives it."""

    BETTER = "better"
    WORSE = "worse"
    SMALL = "no difference that matters"
    OPEN = "no difference shown"
    SAME = "the same in every seed"
    ONE_SEED = "one seed, so no verdict"
    NONE = "no pair of finished runs"


class Comparison(NamedTuple):
    """A variant and the baseline, by the seeds that both finished.

    Attributes:
      difference: mean of variant − baseline; NaN without a pair.
      paired: None of fewer than two pairs.
      p: of Student's t; of the sign flips where all differences are the same number.
      corrected_p: p after Holm's correction.
      flip_p: of the sign flips.
      in_runs: the difference in standard deviations of one run.
      detectable: the smallest true difference that these seeds show 4 times in 5.
      needed: seeds to show a true difference as large as this one 4 times in 5; None if too many.
      smallest: the smallest difference of interest; None if none was said.
      needed_for_smallest: seeds to show that one.
    """

    task: Task
    metric: Metric
    variant: str
    seeds: tuple[int, ...]
    values: np.ndarray
    baseline: np.ndarray
    difference: float
    paired: Paired | None
    p: float
    corrected_p: float
    flip_p: float
    in_runs: float
    detectable: float
    needed: int | None
    smallest: float | None
    needed_for_smallest: int | None
    verdict: Verdict

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval, which is of this comparison alone, does."""
        return self.paired is not None and bool(self.paired.low > 0 or self.paired.high < 0)

    @property
    def primary(self) -> bool:
        """Whether the metric is the first of its task."""
        return self.metric == self.task.metrics[0]


def compare(sweep: Sweep, *, alpha: float, smallest: Mapping[str, float]) -> list[Comparison]:
    """All comparisons of a sweep.

    p-values are corrected for the number of comparisons by first metrics; further metrics, which
    often measure the same thing again, are corrected among themselves.

    Args:
      alpha: the share of sweeps of no effect at all whose first metrics may show one; intervals are
        of confidence 1 − alpha.
      smallest: the smallest difference of interest by metric.
    """
    counted = sweep.counted
    found = [
        _compare(
            task,
            metric,
            variant,
            _by_seed(counted, task, variant),
            _by_seed(counted, task, sweep.baseline),
            alpha,
            smallest.get(metric.name),
        )
        for task in sweep.tasks
        for metric in task.metrics
        for variant in sweep.variants
        if variant != sweep.baseline
    ]
    for primary in (True, False):
        tested = [i for i, e in enumerate(found) if e.primary == primary and e.paired is not None]
        corrected = statistics.holm(np.array([found[i].p for i in tested]))
        for i, p in zip(tested, corrected, strict=True):
            each = found[i]._replace(corrected_p=float(p))
            found[i] = each._replace(verdict=judge(each, alpha))
    return found


def values_by_seed(sweep: Sweep, task: Task, metric: Metric, variant: str) -> dict[int, float]:
    """The last value of a metric by seed, of a variant's runs that count."""
    runs = _by_seed(sweep.counted, task, variant)
    return {seed: run.final(metric.name) for seed, run in runs.items()}


def _by_seed(runs: Sequence[Run], task: Task, variant: str) -> dict[int, Run]:
    return {r.seed: r for r in runs if (r.task, r.variant) == (task.name, variant)}


def _compare(
    task: Task,
    metric: Metric,
    variant: str,
    own: dict[int, Run],
    base: dict[int, Run],
    alpha: float,
    smallest: float | None,
) -> Comparison:
    seeds = tuple(sorted(own.keys() & base.keys()))
    values = np.array([own[seed].final(metric.name) for seed in seeds])
    baseline = np.array([base[seed].final(metric.name) for seed in seeds])
    differences = values - baseline
    none = Comparison(
        task=task,
        metric=metric,
        variant=variant,
        seeds=seeds,
        values=values,
        baseline=baseline,
        difference=float(differences.mean()) if seeds else math.nan,
        paired=None,
        p=math.nan,
        corrected_p=math.nan,
        flip_p=math.nan,
        in_runs=math.nan,
        detectable=math.nan,
        needed=None,
        smallest=smallest,
        needed_for_smallest=None,
        verdict=Verdict.ONE_SEED if seeds else Verdict.NONE,
    )
    if len(seeds) < 2:
        return none
    paired = statistics.paired(differences, alpha)
    sd = float(paired.sd)
    flip_p = float(statistics.sign_flip_p(differences))
    return none._replace(
        paired=paired,
        p=float(paired.p) if sd else flip_p,
        flip_p=flip_p,
        in_runs=float(statistics.run_sigmas(values, baseline)),
        detectable=statistics.detectable(sd, len(seeds), alpha=alpha),
        needed=statistics.seeds_needed(float(paired.mean), sd, alpha=alpha),
        needed_for_smallest=(
            None if not smallest else statistics.seeds_needed(smallest, sd, alpha=alpha)
        ),
    )


def judge(each: Comparison, alpha: float) -> Verdict:
    """What a comparison of two seeds or more shows, by the p-value corrected for their number.

    "No difference that matters" is said where the whole interval lies within the smallest
    difference of interest: two one-sided tests (TOST), each at alpha/2.
    """
    paired = each.paired
    assert paired is not None
    if paired.sd == 0 and paired.mean == 0:
        return Verdict.SAME
    if within(each):
        return Verdict.SMALL
    if each.corrected_p >= alpha:
        return Verdict.OPEN
    lower = paired.mean < 0
    return Verdict.BETTER if lower == (each.metric.better == "lower") else Verdict.WORSE


def within(each: Comparison) -> bool:
    """Whether the interval excludes all differences as large as the smallest of interest."""
    if each.paired is None or each.smallest is None:
        return False
    return bool(max(-each.paired.low, each.paired.high) < each.smallest)
