"""Claims that one variant of a sweep is better than another, or no worse, seed by seed."""

from collections.abc import Iterable

import numpy as np

from carve_jax.evaluation import statistics
from experiments.claims.claim import Answer, Verdict
from experiments.claims.records import Found
from experiments.reporting import words
from experiments.reporting.compare import values_by_seed

ALPHA = 0.05


def judge_pairs(
    found: Found, task: str, variant: str, baseline: str, *, seeds: int, margin: float | None = None
) -> Answer | None:
    """The answer of paired seeds by the task's first metric; None without two pairs.

    Args:
      found: the sweep.
      task, variant, baseline: of it, by name.
      seeds: pairs that the criterion asks for.
      margin: how much worse still counts as no loss; None if the claim is that it is better.
    """
    sweep = found.sweep
    of_task = next((each for each in sweep.tasks if each.name == task), None)
    if of_task is None or not {variant, baseline} <= sweep.variants.keys():
        return None
    metric = of_task.metrics[0]
    own, base = (values_by_seed(sweep, of_task, metric, name) for name in (variant, baseline))
    pairs = sorted(own.keys() & base.keys())
    if len(pairs) < 2:
        return None
    sign = 1 if metric.better == "lower" else -1  # differences above zero are losses
    differences = np.array([sign * (own[seed] - base[seed]) for seed in pairs])
    paired = statistics.paired(differences, ALPHA)
    worse, better = paired.low > 0, paired.high < 0
    if margin is None:
        verdict = Verdict.HOLDS if better else Verdict.FAILS if worse else Verdict.OPEN
    else:
        small = paired.high < margin
        verdict = Verdict.HOLDS if small else Verdict.FAILS if worse else Verdict.OPEN
    if not decides(found, len(pairs), seeds):
        verdict = Verdict.OPEN
    sd = float(paired.sd)
    places = words.decimals(sd)
    difference, low, high = (
        words.signed(float(value), places)
        for value in (sign * paired.mean, *sorted((sign * paired.low, sign * paired.high)))
    )
    power = statistics.detectable(sd, len(pairs), alpha=ALPHA) if sd else 0.0
    ours = f"{difference} {metric.title} (95% interval {low} to {high})"
    how = (
        f"{sweep.variants[variant]} minus {sweep.variants[baseline]}, {metric.better} is better; "
        f"{of_task.title}; {len(pairs)} paired seeds, which would show "
        f"{words.number(power, places)} four times in five"
    )
    but = doubts(found, task, (variant, baseline), len(pairs), seeds)
    return Answer(ours, how, verdict, found.source, but)


def decides(found: Found, pairs: int, seeds: int) -> bool:
    """Whether a sweep may decide a claim: tuned, and of as many seeds as the criterion asks for."""
    return found.sweep.is_tuned and pairs >= seeds


def doubts(
    found: Found, task: str, variants: Iterable[str], pairs: int, seeds: int
) -> tuple[str, ...]:
    """What takes from the worth of a comparison of these variants of a sweep."""
    untuned = () if found.sweep.is_tuned else ("untuned",)
    few = (f"{pairs} seeds of {seeds}",) if pairs < seeds else ()
    choices = [found.sweep.choices.get((task, variant)) for variant in variants]
    edges = any(choice is not None and choice.at_edge for choice in choices)
    return (*untuned, *few, *(("an optimum at the edge of its grid",) if edges else ()))
