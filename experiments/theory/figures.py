"""How the figures look: one size, one palette that colour-blind readers tell apart."""

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"


def style(index: int) -> dict[str, Any]:
    """Colour and marker of the curve of that index; the two repeat out of step from the eighth."""
    turn = index // len(COLOURS)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index + turn) % len(MARKERS)],
        "linestyle": ("-", "--")[turn % 2],
    }


def panels(figure: Figure, count: int) -> list[Axes]:
    """`count` axes side by side, with a light grid."""
    axes = figure.subplots(1, count, squeeze=False)[0].tolist()
    for each in axes:
        each.grid(alpha=0.3)
    return axes


def label(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Names the axes, and the panel."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(textwrap.fill(title, 60), fontsize=9)


def new_figure(found: str, verdict: str) -> Figure:
    """An empty figure under its finding."""
    figure = Figure(figsize=(10, 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(f"{found} [claim {verdict}]", 110), fontsize=11)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes the PNG."""
    figure.savefig(path)
