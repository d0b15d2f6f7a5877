"""The pictures of a report: curves with bands, differences seed by seed, quality against cost.

Each is legible at the width of a phone, in grey and to colour-blind eyes: series are told apart by
colours (of Okabe and Ito, and two of Tol), dashes and markers, and named where they end.
"""

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.reporting.compare import Comparison
from experiments.reporting.sweep import Metric, Run, Sweep, Task

INK = "#010203"
"""Stands for the colour of the page's text: an SVG in a page takes on that of its surroundings."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#999933")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X"
WIDTH = 4.6  # inches: as drawn, points are about the pixels of a phone
LONGEST = 28  # letters of a title beside a point; a longer one gives way to the variant's name
STEEP = 0.15  # of the tokens, at the start: too steep to be shown in full
BASELINE = (INK, "-", "o")


class Cost(NamedTuple):
    """What quality is set against; `read` gives it of a run, or None."""

    name: str
    label: str
    read: Callable[[Run], float | None]
    more_is_better: bool

    @property
    def better(self) -> str:
        """Which way is."""
        return "more is better" if self.more_is_better else "less is better"


COSTS = (
    Cost("parameters", "parameters", lambda run: run.parameters, False),
    Cost("throughput", "tokens a second", lambda run: run.rate, True),
    Cost("memory", "peak memory (MB)", lambda run: run.memory and run.memory / 1e6, False),
)


def styles(sweep: Sweep) -> dict[str, tuple[str, str, str]]:
    """Colour, dashes and marker of every variant; the baseline's is the ink of the text."""
    others = [name for name in sweep.variants if name != sweep.baseline]
    found = {sweep.baseline: BASELINE}
    for i, name in enumerate(others):
        colour = COLOURS[i % len(COLOURS)]
        dash = DASHES[(i // len(COLOURS) + i) % len(DASHES)]
        found[name] = (colour, dash, MARKERS[(i + 1) % len(MARKERS)])
    return found


def curves(sweep: Sweep, task: Task) -> Figure:
    """`curve_metric` by tokens: the mean over seeds, a band from the lowest to the highest.

    Runs that do not count are thin dotted lines that end in a cross.
    """
    metric, style = curve_metric(sweep, task), styles(sweep)
    ends: dict[str, tuple[float, float]] = {}
    seen: list[np.ndarray] = []
    faint = 0.18 if len(sweep.variants) < 5 else 0.08
    with _axes(3.4) as (figure, axes):
        for variant in sweep.variants:
            colour, dash, marker = style[variant]
            runs = [run for run in sweep.of(task, variant) if sweep.fault(run) is None]
            x, low, mean, high = band(runs, metric)
            if x.size:
                few = marker if x.size <= 12 else ""
                axes.fill_between(x, low, high, color=colour, alpha=faint, linewidth=0)
                axes.plot(x, mean, dash, color=colour, marker=few, markersize=3.5)
                ends[variant] = (x[-1], mean[-1])
                seen += [low[x >= STEEP * x[-1]], high[x >= STEEP * x[-1]]]
        for run in sweep.runs:
            if run.task == task.name and sweep.fault(run) is not None:
                _stopped(axes, run, metric, style[run.variant][0])
        if seen:  # neither the steep start nor a run that diverged sets the scale
            low, high = np.concatenate(seen).min(), np.concatenate(seen).max()
            margin = 0.06 * (high - low) or 0.01
            axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("tokens counted in the loss")
        axes.set_ylabel(_worded(metric))
        _name(figure, axes, ends, sweep)
        _thousands(axes)
    return figure


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
    title = curve_metric(sweep, task).title
    text = f"{title[:1].upper()}{title[1:]}, by tokens: mean over seeds, lowest to highest"
    if any(sweep.fault(run) is not None for run in sweep.runs if run.task == task.name):
        text += "; dotted to a cross, runs that do not count"
    return text


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
    """Of each variant: every seed a ring, the mean a bar across, its interval a line.

    Args:
      comparisons: of one metric of one task, with a pair each at least.
    """
    metric, style = comparisons[0].metric, styles(sweep)
    with _axes(1.1 + 0.42 * len(comparisons)) as (figure, axes):
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
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        low, high = axes.get_xlim()
        widest = max(-low, high)
        axes.set_xlim(-widest, widest)
        sides = ("better", "worse") if metric.better == "lower" else ("worse", "better")
        axes.set_title(f"← {sides[0]}", loc="left", fontsize=8)
        axes.set_title(f"{sides[1]} →", loc="right", fontsize=8)
        axes.set_xlabel(f"{metric.title},\ndifference from {sweep.variants[sweep.baseline]}")
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
    with _axes(3.2) as (figure, axes):
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
        axes.set_ylabel(_worded(metric))
        _name(figure, axes, {v: (x, float(np.mean(y))) for v, (x, y) in points.items()}, sweep)
        _thousands(axes)
    return figure


def quality_and_cost(sweep: Sweep, task: Task, cost: Cost) -> dict[str, tuple[float, list[float]]]:
    """Of each variant the mean cost of its runs, and the value of each; of runs that count."""
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


def to_png(figure: Figure) -> bytes:
    """On white, at more than twice the pixels it is drawn for."""
    stream = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """For a page: transparent, in the colours of its surroundings, the same for the same figure.

    Args:
      name: keeps its inner names apart from those of other figures of the page.
    """
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


@contextmanager
def _axes(height: float) -> Iterator[tuple[Figure, Axes]]:
    settings: Any = {
        "font.size": 9,
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.15,
        "lines.linewidth": 1.6,
        "text.parse_math": False,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color",
             "grid.color"), INK,
        ),
    }  # fmt: skip
    with mpl.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.add_subplot()


def _name(figure: Figure, axes: Axes, at: dict[str, tuple[float, float]], sweep: Sweep) -> None:
    """Names the points of variants at the right margin, apart, each with a line to its point."""
    if not at:
        return
    axes.set_xlim(axes.get_xlim())  # where limits are still to be found, there is no transform
    axes.set_ylim(axes.get_ylim())
    to_share = axes.transData + axes.transAxes.inverted()
    heights = {name: float(to_share.transform(point)[1]) for name, point in at.items()}
    order = sorted(heights, key=heights.__getitem__)
    line = 8 * 1.3 / 72 / (0.8 * figure.get_figheight())  # its share of the axes
    style = styles(sweep)
    for name, y in zip(order, spread([heights[name] for name in order], line), strict=True):
        colour = style[name][0]
        axes.annotate(
            sweep.variants[name] if len(sweep.variants[name]) <= LONGEST else name,
            at[name], (1.04, y), "data", "axes fraction",
            va="center", fontsize=8, annotation_clip=False, color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6,
                        "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Sorted heights moved to be `gap` apart at least, clusters about their own middle."""
    clusters: list[list[float]] = []
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1:
            low, high = clusters[-2:]
            ends = (
                np.mean(low) + (len(low) - 1) * gap / 2,
                np.mean(high) - (len(high) - 1) * gap / 2,
            )
            if ends[1] - ends[0] >= gap - 1e-12:
                break
            clusters[-2:] = [low + high]
    return [
        float(np.mean(c)) + (i - (len(c) - 1) / 2) * gap for c in clusters for i in range(len(c))
    ]


def _worded(metric: Metric) -> str:
    return f"{metric.title} ({metric.better} is better)"


def _thousands(axes: Axes) -> None:
    def told(value: float, _: float) -> str:
        for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:g}{letter}"
        return f"{value:g}"

    axes.xaxis.set_major_formatter(told)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
