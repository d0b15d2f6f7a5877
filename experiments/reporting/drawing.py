"""What the pictures of a report share: colours, axes, ticks, names beside points, and files.

Each picture is legible at the width of a phone, in grey and to colour-blind eyes: series are told
apart by colours (of Okabe and Ito, and two of Tol), dashes and markers, and named where they end.
"""

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.reporting.sweep import Metric, Sweep

INK = "#010203"
"""Stands for the colour of the page's text: an SVG in a page takes on that of its surroundings."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#999933")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X"
WIDTH = 4.6  # inches: as drawn, points are about the pixels of a phone
WRAP = 22  # letters of a line of a title beside a point
BASELINE = (INK, "-", "o")
# The inks of page.html, and what it does to other colours in the dark.
BY_ITSELF = (
    "<style>svg { color: #1c2024 } @media (prefers-color-scheme: dark) "
    "{ svg { color: #e3e7ea; filter: brightness(1.35) } }</style>"
)
ROUND = (1, 2, 5, 10)
"""Ticks are multiples of these, times a power of ten."""


def styles(sweep: Sweep) -> dict[str, tuple[str, str, str]]:
    """Colour, dashes and marker of every variant; the baseline's is the ink of the text."""
    others = [name for name in sweep.variants if name != sweep.baseline]
    found = {sweep.baseline: BASELINE}
    for i, name in enumerate(others):
        colour = COLOURS[i % len(COLOURS)]
        dash = DASHES[(i // len(COLOURS) + i) % len(DASHES)]
        found[name] = (colour, dash, MARKERS[(i + 1) % len(MARKERS)])
    return found


@contextmanager
def drawn(height: float) -> Iterator[Figure]:
    """A figure of the report's look, as high as so many inches."""
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
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def name_points(
    figure: Figure, axes: Axes, at: dict[str, tuple[float, float]], sweep: Sweep
) -> None:
    """Names the points of variants at the right margin, apart, each with a line to its point."""
    if not at:
        return
    axes.set_xlim(axes.get_xlim())  # where limits are still to be found, there is no transform
    axes.set_ylim(axes.get_ylim())
    to_share = axes.transData + axes.transAxes.inverted()
    heights = {name: float(to_share.transform(point)[1]) for name, point in at.items()}
    order = sorted(heights, key=heights.__getitem__)
    titles = {name: textwrap.fill(sweep.variants[name], WRAP) for name in at}
    lines = 1 + max(title.count("\n") for title in titles.values())
    line = lines * 8 * 1.3 / 72 / (0.8 * figure.get_figheight())  # its share of the axes
    style = styles(sweep)
    for name, y in zip(order, spread([heights[name] for name in order], line), strict=True):
        colour = style[name][0]
        axes.annotate(
            titles[name], at[name], (1.04, y), "data", "axes fraction",
            va="center", fontsize=8, annotation_clip=False, color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8, "alpha": 0.5,
                        "linestyle": ":", "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3},
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


def worded(metric: Metric) -> str:
    """The label of a metric's axis."""
    return f"{metric.title} ({metric.better} is better)"


def round_ticks(axes: Axes, *, x: int = 5, y: int = 6) -> None:
    """Few round numbers on both axes, those of the horizontal one with k, M and B."""

    def told(value: float, _: float) -> str:
        for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:g}{letter}"
        return f"{value:g}".replace("-", "−")

    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(x, steps=ROUND))
    axes.xaxis.set_major_formatter(told)
    axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(y, steps=ROUND))


def marker_legend(figure: Figure, filled: str, hollow: str) -> None:
    """What filled and hollow markers mean, below the axes."""
    handles = [
        Line2D([], [], marker="o", color=INK, markerfacecolor=face, linestyle="", label=label)
        for face, label in ((INK, filled), ("none", hollow))
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False,
        handletextpad=0.2, columnspacing=1.2,
    )  # fmt: skip


def to_png(figure: Figure) -> bytes:
    """On white, at more than twice the pixels it is drawn for."""
    stream = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """SVG for a page: transparent, in its surroundings' colours, the same for the same figure.

    Args:
      name: keeps its inner names apart from those of other figures of the page.
    """
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def to_svg_file(figure: Figure, name: str) -> str:
    """As `to_svg`, for a file of its own: in dark or light, as the reader has asked for."""
    head, mark, rest = to_svg(figure, name).partition(">")
    return f"{head}{mark}\n{BY_ITSELF}{rest}"
