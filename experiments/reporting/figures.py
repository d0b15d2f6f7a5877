"""The pictures of a report: differences, seeds, curves with bands, quality against cost."""

import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting.compare import Comparison
from experiments.reporting.drawing import (
    INK,
    drawn,
    marker_legend,
    name_points,
    round_ticks,
    styles,
    worded,
)
from experiments.reporting.sweep import Metric, Run, Sweep, Task

STEEP = 0.15  # of the tokens, at the start: too steep to be shown in full
TOGETHER = 4  # variants whose bands are told apart in one pair of axes


class Cost(NamedTuple):
    """What quality is set against; `read` gives it of a run, or None."""

    name: str
    label: str
    read: Callable[[Run], float | None]
    more_is_better: bool

    @property
    def better(self) -> str:
        """Which way is better, in words."""
        return "more is better" if self.more_is_better else "less is better"


COSTS = (
    Cost("parameters", "parameters", lambda run: run.parameters, False),
    Cost("cache", "bytes carried per sequence", lambda run: run.cache_bytes, False),
    Cost("throughput", "tokens per second", lambda run: run.rate, True),
    Cost("memory", "peak memory (MB)", lambda run: run.memory and run.memory / 1e6, False),
)


def curves(sweep: Sweep, task: Task) -> Figure:
    """`curve_metric` by tokens: the mean over seeds, a band from the lowest to the highest.

    Of more than a few variants each has axes of its own, with the baseline. Runs that do not count
    are thin dotted lines that end in a cross.
    """
    metric = curve_metric(sweep, task)
    if len(sweep.variants) > TOGETHER:
        return _panels(sweep, task, metric)
    with drawn(3.4) as figure:
        axes = figure.add_subplot()
        ends, seen = _lines(axes, sweep, task, metric, list(sweep.variants))
        _limit(axes, seen)
        axes.set_xlabel("tokens counted in the loss")
        axes.set_ylabel(worded(metric))
        name_points(figure, axes, ends, sweep)
        round_ticks(axes)
    return figure


def _panels(sweep: Sweep, task: Task, metric: Metric) -> Figure:
    others = [name for name in sweep.variants if name != sweep.baseline]
    rows = (len(others) + 1) // 2
    with drawn(0.8 + 1.35 * rows) as figure:
        grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel()
        seen: list[np.ndarray] = []
        for axes, variant in zip(grid, others, strict=False):
            seen += _lines(axes, sweep, task, metric, [sweep.baseline, variant])[1]
            title = textwrap.fill(sweep.variants[variant], 30)
            axes.set_title(title, fontsize=8, color=styles(sweep)[variant][0])
        for axes in grid[len(others) :]:
            axes.set_axis_off()
        _limit(grid[0], seen)
        round_ticks(grid[0], x=4, y=4)
        figure.supxlabel("tokens counted in the loss", fontsize=9)
        figure.supylabel(worded(metric), fontsize=9)
    return figure


def _lines(
    axes: Axes, sweep: Sweep, task: Task, metric: Metric, variants: Sequence[str]
) -> tuple[dict[str, tuple[float, float]], list[np.ndarray]]:
    """Means, bands and what was cut off; where each ends, and what the scale is to show."""
    ends: dict[str, tuple[float, float]] = {}
    seen: list[np.ndarray] = []
    for variant in variants:
        colour, dash, marker = styles(sweep)[variant]
        runs = [run for run in sweep.of(task, variant) if sweep.fault(run) is None]
        x, low, mean, high = band(runs, metric)
        if x.size:
            few = marker if x.size <= 12 else ""
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x, mean, dash, color=colour, marker=few, markersize=3.5)
            ends[variant] = (x[-1], mean[-1])
            seen += [low[x >= STEEP * x[-1]], high[x >= STEEP * x[-1]]]
    for run in sweep.runs:
        if run.task == task.name and run.variant in variants and sweep.fault(run) is not None:
            _stopped(axes, run, metric, styles(sweep)[run.variant][0])
    return ends, seen


def _limit(axes: Axes, seen: Sequence[np.ndarray]) -> None:
    """Has neither the steep start nor a run that diverged set the scale."""
    if seen:
        low, high = np.concatenate(seen).min(), np.concatenate(seen).max()
        margin = 0.06 * (high - low) or 0.01
        axes.set_ylim(low - margin, high + margin)


def curve_metric(sweep: Sweep, task: Task) -> Metric:
    """The task's first metric; measured too seldom, the first that training keeps count of."""
    runs = [run for run in sweep.counted if run.task == task.name]

    def often(name: str) -> bool:
        return bool(runs) and all(len(run.curve(name)) >= 4 for run in runs)

    first = task.metrics[0]
    if often(first.name):
        return first
    for metric in task.metrics:
        training = metric.name.removeprefix("eval_")
        if often(training):
            title = metric.title.removeprefix("held-out ")
            return Metric(training, metric.better, f"training {title}")
    return first


def what_curves_show(sweep: Sweep, task: Task) -> str:
    """The caption of `curves`."""
    text = "Line: mean over seeds. Band: from the lowest to the highest seed"
    if len(sweep.variants) > TOGETHER:
        text += f". Each variant beside {sweep.variants[sweep.baseline]}, in the text's colour"
    if any(sweep.fault(run) is not None for run in sweep.runs if run.task == task.name):
        text += ". Dotted to a cross: runs that do not count"
    return f"{text}."


def band(
    runs: Sequence[Run], metric: Metric
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, lowest, mean and highest value at the steps where all the runs have one."""
    each = [run.curve(metric.name) for run in runs]
    steps = sorted(set.intersection(*map(set, each))) if each else []
    if not steps:
        return (np.zeros(0),) * 4
    found = np.array([[curve[step] for step in steps] for curve in each])
    tokens, values = found[..., 0], found[..., 1]
    return tokens.mean(0), values.min(0), values.mean(0), values.max(0)


def _stopped(axes: Axes, run: Run, metric: Metric, colour: str) -> None:
    points = list(run.curve(metric.name).values())
    if points:
        axes.plot(*zip(*points, strict=True), ":", color=colour, linewidth=1)
        axes.plot(*points[-1], "x", color=colour, markersize=7)


def differences(sweep: Sweep, comparisons: Sequence[Comparison]) -> Figure:
    """For each variant every seed is a ring, the mean a bar across, and its interval a line.

    Args:
      comparisons: of one metric of one task, with a pair each at least.
    """
    metric, style = comparisons[0].metric, styles(sweep)
    with drawn(1.1 + 0.42 * len(comparisons)) as figure:
        axes = figure.add_subplot()
        for row, each in enumerate(comparisons):
            colour, _, marker = style[each.variant]
            if each.paired is not None:
                axes.plot([each.paired.low, each.paired.high], [row, row], color=colour, lw=2.5)
                axes.plot(
                    each.difference, row, "|", color=colour, markersize=16, markeredgewidth=2.5
                )
            # Rings lie a little under the line, so that neither hides the other.
            axes.plot(
                each.values - each.baseline, np.full(len(each.seeds), row + 0.22), marker,
                color=colour, markerfacecolor="none", markersize=5, linestyle="",
            )  # fmt: skip
        smallest = comparisons[0].smallest
        if smallest:
            axes.axvspan(-smallest, smallest, color=INK, alpha=0.07, linewidth=0)
        axes.axvline(0, color=INK, linewidth=1)
        names = [textwrap.fill(sweep.variants[each.variant], 24) for each in comparisons]
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        low, high = axes.get_xlim()
        widest = max(-low, high)
        axes.set_xlim(-widest, widest)
        round_ticks(axes)
        axes.set_yticks(range(len(names)), names)
        sides = ("better", "worse") if metric.better == "lower" else ("worse", "better")
        axes.set_title(f"← {sides[0]}", loc="left", fontsize=8)
        axes.set_title(f"{sides[1]} →", loc="right", fontsize=8)
        axes.set_xlabel(f"{metric.title},\ndifference from {sweep.variants[sweep.baseline]}")
    return figure


def seeds(sweep: Sweep, task: Task) -> Figure:
    """The last value of every seed of each variant, filled where it solves the task."""
    metric, style = task.metrics[0], styles(sweep)
    assert metric.solved is not None
    with drawn(1.3 + 0.42 * len(sweep.variants)) as figure:
        axes = figure.add_subplot()
        for row, variant in enumerate(sweep.variants):
            colour, _, marker = style[variant]
            runs = [run for run in sweep.of(task, variant) if sweep.fault(run) is None]
            for run, height in zip(runs, np.linspace(-0.25, 0.25, len(runs)), strict=True):
                value = run.final(metric.name)
                face = colour if metric.is_solved(value) else "none"
                axes.plot(
                    value, row + height, marker, color=colour, markerfacecolor=face, markersize=5
                )
        axes.axvline(metric.solved, color=INK, linewidth=1, linestyle=":")
        axes.set_xlabel(worded(metric))
        round_ticks(axes)
        names = [textwrap.fill(title, 24) for title in sweep.variants.values()]
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        marker_legend(figure, "solved", "not solved")
    return figure


def pareto(sweep: Sweep, task: Task, cost: Cost) -> Figure | None:
    """Quality against a cost, with the frontier; None where no two variants differ in the cost.

    Points are means over seeds, upright bars go from the worst seed to the best.
    """
    metric, style = task.metrics[0], styles(sweep)
    points = quality_and_cost(sweep, task, cost)
    if len({round(x, 9) for x, _ in points.values()}) < 2:
        return None
    best = frontier(points, more_is_better=cost.more_is_better, lower=metric.better == "lower")
    with drawn(3.4) as figure:
        axes = figure.add_subplot()
        for variant, (x, values) in points.items():
            colour, _, marker = style[variant]
            y = float(np.mean(values))
            axes.plot([x, x], [min(values), max(values)], color=colour, linewidth=1.2)
            face = colour if variant in best else "none"
            axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=7)
        on_it = sorted((points[v][0], float(np.mean(points[v][1]))) for v in best)
        axes.plot(*zip(*on_it, strict=True), color=INK, alpha=0.35, linewidth=1, zorder=0)
        axes.margins(0.08, 0.12)
        axes.set_xlabel(f"{cost.label} ({cost.better})")
        axes.set_ylabel(worded(metric))
        name_points(
            figure, axes, {v: (x, float(np.mean(y))) for v, (x, y) in points.items()}, sweep
        )
        round_ticks(axes)
        marker_legend(figure, "no other is better in both", "another is")
    return figure


def quality_and_cost(sweep: Sweep, task: Task, cost: Cost) -> dict[str, tuple[float, list[float]]]:
    """The mean cost of each variant's runs and the value of each run, of runs that count."""
    points = {}
    for variant in sweep.variants:
        runs = [run for run in sweep.of(task, variant) if sweep.fault(run) is None]
        costs = [found for run in runs if (found := cost.read(run)) is not None]
        if costs:
            values = [run.final(task.metrics[0].name) for run in runs]
            points[variant] = (float(np.mean(costs)), values)
    return points


def frontier(
    points: dict[str, tuple[float, list[float]]], *, more_is_better: bool, lower: bool
) -> set[str]:
    """The variants that no other one equals or beats in both, and beats in one."""
    sign = np.array([-1.0 if more_is_better else 1.0, 1.0 if lower else -1.0])
    at = {name: sign * (x, np.mean(values)) for name, (x, values) in points.items()}
    return {
        name
        for name, own in at.items()
        if not any((other <= own).all() and (other < own).any() for other in at.values())
    }
