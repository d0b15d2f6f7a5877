"""What a report says before its evidence: the answer, the picture that gives it, and the losses."""

import math
import statistics
from collections.abc import Callable, Sequence

from experiments.reporting import words
from experiments.reporting.compare import Comparison, Verdict
from experiments.reporting.solved import Solved
from experiments.reporting.sweep import Run, Task
from experiments.reporting.tables import Findings, interval, places_of, tuning_words, would_show
from experiments.reporting.words import escape, signed

OURS = "carve"
FIRST = (
    "GDN-2 (Gated DeltaNet-2) is a layer of language models that keeps what it has read in a "
    "memory of fixed size: at each token the memory decays, loses what it holds under the token's "
    "key, and takes the new value. CARVE is GDN-2 with an erasing gate that also sees what the "
    "memory has lately returned. This report says what a sweep of training runs shows about such "
    "layers and what it does not, since small changes often help or hurt by luck alone. Terms are "
    "explained under [How to read this](#how-to-read-this)."
)


def in_short(found: Findings) -> list[str]:
    """The answer before anything else."""
    sweep = found.sweep
    parts = [FIRST, "## In short"]
    for pictures in found.pictures.values():
        if found.lead in pictures:
            parts.append(words.picture(found.lead, *pictures[found.lead]))
    for task in sweep.tasks:
        metric = task.metrics[0]
        parts.append(
            f"**{escape(task.title)}** ({escape(metric.title)}, {metric.better} is better)"
        )
        lines = solved_lines(found, task) + headlines(found, found.of(task, metric))
        parts.append(words.bullets(lines))
    parts.append(_tally(found))
    if not sweep.is_tuned:
        parts.append(tuning_words(sweep))
    elif any(choice.at_edge for choice in sweep.choices.values()):
        parts.append("A learning rate at the edge of its grid was chosen: see [Tuning](#tuning).")
    faults = [run for run in sweep.runs if sweep.fault(run) is not None]
    if faults:
        parts.append(
            f"**{words.count(len(faults), 'run')} of {len(sweep.runs)} gave no result** and "
            "must be borne in mind: see [Runs that do not count](#runs-that-do-not-count)."
        )
    return parts


def solved_lines(found: Findings, task: Task) -> list[str]:
    """How many seeds of each variant solve a task, in one line; none for other tasks."""
    every = [each for each in found.solved if each.task == task and each.seeds]
    if not every:
        return []
    return [
        "**Seeds that solve it:** "
        + words.join([_solved(found, each) for each in every])
        + " (p: exact test of the pairs with "
        + f"{escape(found.sweep.variants[found.sweep.baseline])}, corrected)."
    ]


def _solved(found: Findings, each: Solved) -> str:
    text = f"{escape(found.sweep.variants[each.variant])} {each.number} of {len(each.seeds)}"
    if math.isnan(each.corrected_p):
        return text
    return f"{text} (p {words.probability(each.corrected_p)})"


def headlines(found: Findings, comparisons: Sequence[Comparison]) -> list[str]:
    """A line for each variant that differs, and one for those that do not."""
    sweep = found.sweep
    base = escape(sweep.variants[sweep.baseline])
    lines: list[str] = []
    quiet: list[str] = []
    nearly: list[str] = []
    places = places_of(comparisons)
    for each in comparisons:
        title = escape(sweep.variants[each.variant])
        span = interval(each, places)
        if each.verdict in (Verdict.BETTER, Verdict.WORSE):
            lines.append(
                f"{title} is **{each.verdict.value}** than {base}: "
                f"{signed(each.difference, places)} ({found.confidence} interval {span}; "
                f"{words.count(len(each.seeds), 'seed')})."
            )
        elif each.verdict is Verdict.OPEN:
            power = would_show(each, places)
            told = f"{title} ({signed(each.difference, places)}, {span}; {power})"
            (nearly if each.excludes_zero else quiet).append(told)
        elif each.verdict is Verdict.SMALL:
            lines.append(
                f"{title} differs from {base} by **less than {each.smallest:g}**, the smallest "
                f"difference said to matter (interval {span})."
            )
        elif each.verdict is Verdict.SAME:
            lines.append(f"{title} and {base} are **the same in every seed**.")
        elif each.verdict is Verdict.ONE_SEED:
            lines.append(
                f"{title} differs from {base} by {signed(each.difference, places)} in **one "
                "seed**, which cannot tell a difference from luck."
            )
        else:
            lines.append(f"{title} and {base} have **no seed that both finished**.")
    if nearly:
        lines.append(
            f"**A sign, not proof:** {words.join(nearly)}. Alone the interval would exclude zero, "
            "but among this many comparisons luck gives such a one too often."
        )
    if quiet:
        lines.append(
            f"**No difference from {base} shown** for {words.join(quiet)}: that is not to say that "
            "there is none. What the seeds “would show” is the smallest true difference that as "
            "many find four times in five."
        )
    return lines


def _tally(found: Findings) -> str:
    first = [each for each in found.comparisons if each.primary]
    tested = sum(each.paired is not None for each in first)
    if not tested:
        return (
            "No variant shares more than one seed with the baseline: no interval or p-value is "
            "given, because a single difference says nothing of how much differences vary."
        )
    counts = {v: sum(each.verdict is v for each in first) for v in Verdict}
    rule = f"“Better” and “worse” are said where p is under {found.alpha:g}"
    if len(first) == 1:
        return f"{rule}."
    told = words.join([f"{n} {v.value}" for v, n in counts.items() if n])
    return (
        f"Of {len(first)} comparisons by the first metric of each task: {told}. {rule} after "
        f"correction for the {tested} that have one."
    )


def where_we_lose(found: Findings) -> list[str]:
    """All in which the project's own layer is behind, shown or not.

    Own are the variants called carve…, against the baseline; of a sweep whose baseline is such a
    one, the variants that are better than it.
    """
    sweep = found.sweep
    if sweep.baseline.startswith(OURS):
        sides = [(sweep.baseline, v) for v in sweep.variants if v != sweep.baseline]
    else:
        sides = [(v, sweep.baseline) for v in sweep.variants if v.startswith(OURS)]
    if not sides:
        return []
    lines = [
        line
        for task in sweep.tasks
        for ours, other in sides
        for line in [*_worse(found, task, ours, other), *_dearer(found, task, ours, other)]
    ]
    if not lines:
        lines = ["Nowhere in this sweep, by any of its metrics, nor by size, speed or memory."]
    return [
        "## Where we lose",
        "Everything in which CARVE is behind, to the digits of the tables, shown or not.",
        words.bullets(lines),
    ]


def _worse(found: Findings, task: Task, ours: str, other: str) -> list[str]:
    """Metrics in which ours has the worse mean, and solved seeds."""
    titles = {name: escape(title) for name, title in found.sweep.variants.items()}
    lines = []
    for metric in task.metrics:
        comparisons = found.of(task, metric)
        places = places_of(comparisons)
        for each in comparisons:
            if each.variant not in (ours, other) or not each.seeds:
                continue
            difference = each.difference if each.variant == ours else -each.difference
            shown = each.verdict in (Verdict.BETTER, Verdict.WORSE)
            if (difference > 0) != (metric.better == "lower"):
                continue
            if not (shown or round(difference, places)):
                continue
            lines.append(
                f"{escape(task.title)}, {escape(metric.title)}: {titles[ours]} is behind "
                f"{titles[other]} by {words.number(abs(difference), places)}, "
                f"{'**shown**' if shown else 'not shown'}."
            )
    counts = {e.variant: e for e in found.solved if e.task == task}
    if {ours, other} <= counts.keys() and counts[ours].number < counts[other].number:
        lines.append(
            f"{escape(task.title)}: {titles[ours]} solves it in {counts[ours].number} seeds, "
            f"{titles[other]} in {counts[other].number}."
        )
    return lines


def _dearer(found: Findings, task: Task, ours: str, other: str) -> list[str]:
    """Costs in which ours is behind by a percent or more."""
    sweep = found.sweep

    def mean(variant: str, read: Callable[[Run], float | None]) -> float | None:
        runs = [run for run in sweep.of(task, variant) if sweep.fault(run) is None]
        values = [value for run in runs if (value := read(run)) is not None]
        return statistics.fmean(values) if values else None

    told = []
    for read, better, what in (
        (lambda run: run.rate, 1, "tokens per second"),
        (lambda run: run.memory, -1, "peak memory"),
        (lambda run: run.parameters, -1, "parameters"),
    ):
        own, base = mean(ours, read), mean(other, read)
        if own and base and better * (own / base - 1) < -0.01:
            told.append(f"{what} {words.percent(own / base)}")
    if not told:
        return []
    titles = sweep.variants
    return [
        f"{escape(task.title)}, cost: {escape(titles[ours])} beside {escape(titles[other])}: "
        f"{words.join(told)}."
    ]
