"""The tables of a report: what differs, how sure that is, and what the variants cost."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.reporting import words
from experiments.reporting.compare import Comparison, Verdict
from experiments.reporting.solved import Solved
from experiments.reporting.sweep import Metric, Run, Sweep, Task
from experiments.reporting.words import escape, number, signed


class Findings(NamedTuple):
    """All that a report tells.

    Attributes:
      solved: how many seeds solve the tasks that a run solves or does not.
      pictures: of each task by file name, title and caption.
      lead: file name of the picture that the report begins with; "" without one.
      theory: of theory.json; None without.
    """

    sweep: Sweep
    comparisons: Sequence[Comparison]
    alpha: float
    solved: Sequence[Solved]
    pictures: Mapping[str, Mapping[str, tuple[str, str]]]
    lead: str
    theory: dict[str, Any] | None

    @property
    def confidence(self) -> str:
        """The confidence of the intervals, such as 95%."""
        return f"{100 * (1 - self.alpha):g}%"

    def of(self, task: Task, metric: Metric | None = None) -> list[Comparison]:
        """The comparisons of a task, or of one of its metrics."""
        return [
            each for each in self.comparisons if each.task == task and metric in (None, each.metric)
        ]


def quality(found: Findings, task: Task, metric: Metric) -> str:
    """Means, differences, intervals and verdicts."""
    sweep, comparisons = found.sweep, {e.variant: e for e in found.of(task, metric)}
    places = places_of(list(comparisons.values()))
    rows = []
    for variant, title in sweep.variants.items():
        own = [r.final(metric.name) for r in sweep.of(task, variant) if sweep.fault(r) is None]
        planned = len(sweep.of(task, variant))
        result = number(statistics.fmean(own), places) if own else "–"
        if len(own) > 1:
            result += f" ± {number(statistics.stdev(own), places)}"
        each = comparisons.get(variant)
        rows.append(
            [
                escape(title),
                "baseline" if each is None else verdict(each, places),
                "" if each is None else signed(each.difference, places),
                "" if each is None else interval(each, places),
                result,
                f"{len(own)}" if len(own) == planned else f"**{len(own)} of {planned}**",
            ]
        )
    mean = "mean ± sd" if any("±" in row[4] for row in rows) else "result"
    header = ["variant", "verdict", "difference", f"{found.confidence} interval", mean, "seeds"]
    return words.table(header, rows, left=2)


def would_show(each: Comparison, places: int) -> str:
    """The power of a comparison: what difference it would have found four times in five."""
    found = number(each.detectable, places) if each.detectable > 0 else "any"
    return f"{words.count(len(each.seeds), 'seed')} would show {found}"


def verdict(each: Comparison, places: int) -> str:
    """The verdict as a table's cell."""
    text = each.verdict.value
    if each.verdict is Verdict.OPEN:
        text += " once corrected" if each.excludes_zero else ""
        text += f"; {would_show(each, places)}"
    if each.verdict is Verdict.SMALL:
        return f"**differs by less than {each.smallest:g}**"
    return f"**{text}**" if each.verdict in (Verdict.BETTER, Verdict.WORSE) else text


def interval(each: Comparison, places: int) -> str:
    """The interval in words; where there is none, why not."""
    if each.paired is None:
        return "none: one seed" if each.seeds else "none"
    return f"{signed(float(each.paired.low), places)} to {signed(float(each.paired.high), places)}"


def evidence(found: Findings, task: Task, metric: Metric) -> str:
    """σ, p-values, effect sizes and power."""
    comparisons = [each for each in found.of(task, metric) if each.paired is not None]
    places = places_of(comparisons)
    smallest = comparisons[0].smallest
    rows = []
    for each in comparisons:
        assert each.paired is not None
        row = [
            escape(found.sweep.variants[each.variant]),
            str(len(each.seeds)),
            number(float(each.paired.sigma), 1),
            number(float(each.paired.gaussian_sigma), 1),
            number(each.in_runs, 1),
            words.probability(each.p),
            words.probability(each.corrected_p),
            words.probability(each.flip_p),
            number(float(each.paired.effect), 1),
            number(each.detectable, places),
            needed(each, each.needed),
        ]
        rows.append(row + ([needed(each, each.needed_for_smallest)] if smallest else []))
    header = [
        "variant", "pairs", "σ", "as Gaussian σ", "in sds of a run", "p", "p corrected",
        "p by sign flips", "effect g", "would show", "seeds for this difference",
    ]  # fmt: skip
    return words.table(header + ([f"seeds for {smallest:g}"] if smallest else []), rows)


def solved_table(found: Findings, task: Task) -> list[str]:
    """How many seeds solve a task, how soon, and the exact test of pairs."""
    sweep, metric = found.sweep, task.metrics[0]
    assert metric.solved is not None
    base = escape(sweep.variants[sweep.baseline])
    rows = []
    for each in (each for each in found.solved if each.task == task):
        steps = "–" if math.isnan(each.median_steps) else f"{each.median_steps:,.0f}"
        compared = [str(each.wins), str(each.losses)]
        rows.append(
            [
                escape(sweep.variants[each.variant]),
                f"{each.number} of {len(each.seeds)}",
                f"over {each.longest:,}" if math.isinf(each.median_steps) else steps,
                *(["", ""] if each.variant == sweep.baseline else compared),
                "" if each.variant == sweep.baseline else words.probability(each.p),
                "" if each.variant == sweep.baseline else words.probability(each.corrected_p),
            ]
        )
    header = [
        "variant", "seeds that solve it", "steps to solve, median", "it alone", f"{base} alone",
        "p, exact", "p corrected",
    ]  # fmt: skip
    side = "at most" if metric.better == "lower" else "at least"
    return [
        f"### Solved: {escape(metric.title)} of {side} {metric.solved:g} at the end",
        words.table(header, rows),
        "Steps are those of the first evaluation at the threshold; a seed that did not solve the "
        "task counts as later than any, so a median “over” the last step is censored: fewer than "
        "half came there. “It alone” and the column beside it count the pairs of one seed in "
        "which one of the two solved the task; p is McNemar's exact test of them (a sign test, "
        "two-sided), corrected by Holm for all such comparisons of the sweep. Six pairs for one "
        "side and none for the other are the fewest that reach 0.05.",
    ]


def tuning_words(sweep: Sweep) -> str:
    """How the variants got the settings that they train with."""
    tune = sweep.record.get("tune")
    if tune is None:
        return (
            "**Untuned.** All variants train with the settings of the task's config, and nobody "
            "has looked for those that suit each of them best: a difference may be one of settings."
        )
    field = _field(tune["field"])
    few = f", {tune['steps']:,} steps each" if tune["steps"] else ""
    text = (
        f"The {field} of each variant is, for each task, the one of "
        f"{', '.join(f'{value:g}' for value in tune['grid'])} with the best mean of the task's "
        f"first metric over {words.count(len(tune['seeds']), 'seed')} "
        f"({', '.join(map(str, tune['seeds']))}{few}), which are none of the comparison's."
    )
    titles = {task.name: task.title for task in sweep.tasks}
    edges = [
        f"{escape(sweep.variants[variant])} on {escape(titles[task])}"
        for (task, variant), choice in sweep.choices.items()
        if choice.at_edge
    ]
    if edges:
        text += (
            f" **At an edge of the grid** for {words.join(edges)}: the best value may lie outside "
            "it, and the comparison be unfair to that variant."
        )
    missing = len(sweep.tasks) * len(sweep.variants) - len(sweep.choices)
    if missing:
        text += f" {words.count(missing, 'choice')} {'is' if missing == 1 else 'are'} still open."
    return text


def _field(dotted: str) -> str:
    return dotted.rpartition(".")[2].replace("_", " ")


def choices(sweep: Sweep) -> str:
    """What was chosen for each task and variant, and the mean result of every value."""
    rows = []
    grid = list(dict.fromkeys(v for c in sweep.choices.values() for v in c.tuning.grid))
    for task in sweep.tasks:
        for variant, title in sweep.variants.items():
            choice = sweep.choices.get((task.name, variant))
            if choice is None:
                continue
            means = choice.means
            told = [
                "diverged" if mean is None else number(mean, 4)
                for mean in (means.get(value) for value in grid)
            ]
            edge = " (edge)" if choice.at_edge else ""
            rows.append([escape(task.title), escape(title), f"{choice.value:g}{edge}", *told])
    field = _field(sweep.record["tune"]["field"])
    header = ["task", "variant", field, *(f"at {value:g}" for value in grid)]
    return words.table(header, rows, left=2)


def asked_after(sweep: Sweep, task: Task) -> list[str]:
    """What `experiments.evaluate` measured of a task's trained runs: a table for each of its tasks.

    Means over the seeds that were asked, of runs that count.
    """
    runs = [run for run in sweep.counted if run.task == task.name and run.evaluations]
    parts = []
    for asked in dict.fromkeys(name for run in runs for name in run.evaluations):
        of = [run for run in runs if asked in run.evaluations]
        metrics = list(dict.fromkeys(name for run in of for name in run.evaluations[asked]))
        rows = []
        for variant, title in sweep.variants.items():
            own = [run.evaluations[asked] for run in of if run.variant == variant]
            if own:
                cells = [_spread([each[m] for each in own if m in each]) for m in metrics]
                rows.append([escape(title), *cells, f"{len(own)}"])
        parts.append(f"Asked with `--tasks={asked}`, mean ± sd over the seeds that were:")
        parts.append(words.table(["variant", *map(escape, metrics), "seeds"], rows))
    return ["### Asked of the trained models", *parts] if parts else []


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    told = f"{statistics.fmean(values):.3g}"
    if len(values) > 1:
        told += f" ± {statistics.stdev(values):.2g}"
    return told.replace("-", "−")


def needed(each: Comparison, seeds: int | None) -> str:
    """How many seeds a difference wants; not known without a spread."""
    if each.paired is None or each.paired.sd == 0:
        return "–"
    return "over 10,000" if seeds is None else f"{seeds:,}"


def places_of(comparisons: Sequence[Comparison]) -> int:
    """Decimals that show two digits of the usual spread, the same for a whole table."""
    spreads = [float(e.paired.sd) for e in comparisons if e.paired is not None and e.paired.sd > 0]
    return words.decimals(statistics.median(spreads) if spreads else math.nan)


def costs(sweep: Sweep, task: Task) -> str:
    """Parameters, throughput, memory and time of runs that count."""

    def mean(variant: str, read: Callable[[Run], float | None]) -> float | None:
        runs = [run for run in sweep.of(task, variant) if sweep.fault(run) is None]
        values = [value for run in runs if (value := read(run)) is not None]
        return statistics.fmean(values) if values else None

    def beside(value: float | None, base: float | None) -> str:
        return "" if not value or not base or value == base else f" ({words.percent(value / base)})"

    rows = []
    for variant, title in sweep.variants.items():
        row = [escape(title)]
        for read, told in (
            (lambda run: run.parameters, lambda x: number(x, 0)),
            (lambda run: run.rate, lambda x: number(x, 0)),
            (lambda run: run.memory, words.size),
            (lambda run: run.seconds, words.duration),
        ):
            value, base = mean(variant, read), mean(sweep.baseline, read)
            row.append(told(value) + beside(value, base))
        rows.append(row)
    header = ["variant", "parameters", "tokens per second", "peak memory", "time per run"]
    return words.table(header, rows)


def cost_note(sweep: Sweep, task: Task) -> str:
    """What the figures of `costs` are worth."""
    runs = [run for run in sweep.counted if run.task == task.name]
    note = (
        "Means over seeds, beside the baseline's; the speed of a run is the median of its readings."
    )
    if any(run.memory and not run.on_device for run in runs):
        note += (
            " Memory is the peak of the whole process, Python and compilation included: unless "
            "models are large, their differences drown in it."
        )
    together = max((run.jobs or 1 for run in runs), default=1)
    if together > 1:
        note += (
            f" **{together} runs at a time shared the machine**, so that speeds may be lower, and "
            "less comparable, than those of runs that have it to themselves."
        )
    return note
