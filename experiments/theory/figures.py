"""How the figures look: panels above one another at the width of a phone, in a report's colours."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carve_jax.files import write_atomically
from experiments.reporting.drawing import COLOURS as OTHERS
from experiments.reporting.drawing import INK, MARKERS, drawn, to_png, to_svg_file

COLOURS = (*OTHERS, INK)
PANEL, LINE, HEAD = 2.5, 0.19, 0.6  # inches: of a panel, of a line of its legend, of the finding
LETTERS = 62  # of a line over a figure


def style(index: int, *, of: int = 4) -> dict[str, Any]:
    """Colour, marker and widths of one of so many curves; those drawn later are thinner.

    Curves that fall together stay visible so, each within those before it.
    """
    rest = (of - 1 - index) / max(of - 1, 1)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linewidth": 1.2 + 1.6 * rest,
        "markersize": 3 + 4 * rest,
    }


def panels(figure: Figure, count: int, lines: int = 2) -> list[Axes]:
    """`count` axes above one another, with legends of so many lines; the figure is made as high."""
    figure.set_figheight(HEAD + (PANEL + LINE * lines) * count)
    return figure.subplots(count, squeeze=False)[:, 0].tolist()


def label(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Names the axes, and the panel."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(textwrap.fill(title, LETTERS), fontsize=9, loc="left", fontweight="bold")


def legend(axes: Axes, columns: int = 2) -> None:
    """Names the curves below the axes, where they hide nothing."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=columns, fontsize=8, frameon=False,
        columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip


@contextmanager
def new_figure(found: str, verdict: str) -> Iterator[Figure]:
    """An empty figure under its finding, to be drawn while the context lasts."""
    with drawn(PANEL) as figure, mpl.rc_context({"text.parse_math": True}):  # powers of ten
        head = textwrap.fill(f"{found} [claim {verdict}]", LETTERS)
        figure.suptitle(head, fontsize=9, x=0.01, ha="left")
        yield figure


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG on white at `path`, and beside it an SVG in the reader's light or dark."""
    write_atomically(path, to_png(figure))
    write_atomically(path.with_suffix(".svg"), to_svg_file(figure, path.stem))
