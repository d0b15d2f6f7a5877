"""Pictures of runs: loss by step of one, and one figure by step of several."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from carve_jax.errors import UserError

FILE_NAME = "loss_curve.png"


def plot_loss(lines: list[dict[str, Any]], path: Path) -> Path:
    """Draws the loss curves of `metrics.jsonl`'s lines as a PNG at `path`."""
    text = any("bits_per_byte" in line for line in lines)
    key, label = ("bits_per_byte", "bits per byte") if text else ("loss", "loss (nats per token)")
    figure, axes = _figure(label)
    for name, title, style in ((key, "training", "-"), (f"eval_{key}", "held out", "o-")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=title, markersize=4)
    if axes.lines:
        axes.legend()
    figure.savefig(path)
    return path


def compare_runs(
    runs: Mapping[str, Sequence[list[dict[str, Any]]]],
    key: str,
    *,
    label: str | None = None,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Draws one figure of several runs by step, those of one name (its seeds) alike.

    Args:
      runs: by name, of each run the lines of `metrics.jsonl`, as `read_metrics` gives them.
      key: the figure, such as "eval_accuracy".
      label: of its axis; the key if left out.
      levels: heights to compare with, by name: grey lines.

    Raises:
      UserError: a run never recorded that figure.
    """
    figure, axes = _figure(key if label is None else label)
    # Told apart by colour (for all eyes), dashes and markers.
    styles = zip(mpl.color_sequences["petroff6"], cycle(("-", "--", "-.")), "osD^vP", strict=False)
    for (name, several), (colour, dash, marker) in zip(runs.items(), cycle(styles), strict=False):
        for number, lines in enumerate(several):
            points = [(line["step"], line[key]) for line in lines if key in line]
            if not points:
                raise UserError(f"a run of {name!r} has no {key!r} in its metrics.jsonl")
            few = marker if len(points) <= 40 else None
            axes.plot(
                *zip(*points, strict=True), dash, color=colour, marker=few, markersize=4,
                label=None if number else name,
            )  # fmt: skip
    for name, level in (levels or {}).items():
        axes.axhline(level, color="0.5", linewidth=1, linestyle=":")
        axes.annotate(
            name, (1, level), xycoords=("axes fraction", "data"), xytext=(-4, 2),
            textcoords="offset points", ha="right", va="bottom", color="0.35", fontsize=8,
        )  # fmt: skip
    axes.legend()
    return figure


def _figure(label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    return figure, axes
