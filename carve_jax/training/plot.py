"""The picture of a run: training and held-out bits per byte (or nats a token) by step."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FILE_NAME = "loss_curve.png"


def plot_loss(lines: list[dict[str, Any]], path: Path) -> Path:
    """Draws the loss curves of `metrics.jsonl`'s lines as a PNG at `path`."""
    text = any("bits_per_byte" in line for line in lines)
    key, label = ("bits_per_byte", "bits per byte") if text else ("loss", "loss (nats a token)")
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, title, style in ((key, "training", "-"), (f"eval_{key}", "held out", "o-")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=title, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path)
    return path
