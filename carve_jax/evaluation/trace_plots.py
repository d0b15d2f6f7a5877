"""Pictures of a trace: gates, contents and states of a model, token by token.

Gates are drawn in viridis, signed quantities in a diverging map about 0; both can be read by
colour-blind eyes. A notebook shows a `Figure` after `%matplotlib inline`;
elsewhere `figure.savefig(path)` writes it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from carve_jax.errors import UserError
from carve_jax.evaluation.trace import Trace
from carve_jax.shapes import Float

SHARE, SIGNED = "viridis", "PuOr"
DPI = 110
MOST_LABELS = 72
"""Where there are more tokens than this, every second is labelled, or every third, and so on."""


class _Panel(NamedTuple):
    """One heat map: its title, values [T, channels] and the name of its channels."""

    title: str
    values: np.ndarray
    channels: str


def plot_gates(
    read: Trace,
    labels: Sequence[str],
    *,
    layer: int = 0,
    head: int = 0,
    title: str = "",
    beside: Sequence[Trace] = (),
) -> Figure:
    """All gates of one head above one another: one column per token, one row per channel.

    Args:
      read: the trace.
      labels: one word per token.
      layer: index into `read.layers`.
      head: a value head.
      title: over all, before layer and head, such as what was read.
      beside: traces of the same model whose pictures this one is compared with: their values
        count for its colour scales, so that all of them have the same.

    Raises:
      UserError: no such layer or head, or another number of labels than tokens.
    """
    layers, _, heads = read.state_norm.shape
    if not (0 <= layer < layers and 0 <= head < heads):
        raise UserError(
            f"layer={layer}, head={head}: the trace has layers 0 to {layers - 1} and heads 0 to "
            f"{heads - 1}"
        )
    panels = _gate_panels(read, layer, head)
    others = [_gate_panels(other, layer, head) for other in beside]
    counts = [panel.values.shape[1] for panel in panels]
    rows = [0.35 if count == 1 else max(0.75, 0.04 * count) for count in counts]
    figure = _figure(_width(len(labels)), 0.75 + sum(rows) + 0.35 * len(panels))
    grid = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=rows)
    for row, (axes, panel) in enumerate(zip(grid[:, 0], panels, strict=True)):
        compared = [panel.values, *(other[row].values for other in others)]
        signed = min(values.min() for values in compared) < 0
        # Gates range to 1, whatever they reach, or to 2 with negative eigenvalues.
        largest = max(np.abs(values).max() for values in compared)
        image = _heat_map(axes, panel.values.T, signed, largest if signed else 1 + (largest > 1))
        axes.set_title(panel.title, loc="left", fontsize=9)
        several = panel.values.shape[1] > 1
        axes.set_ylabel(f"{panel.channels} channel" if several else "", fontsize=8)
        axes.set_yticks(*([[0, panel.values.shape[1] - 1]] if several else [[0], ["all"]]))
        figure.colorbar(image, ax=axes, pad=0.01, aspect=8)
    _label_tokens(grid[-1, 0], labels, panels[0].values.shape[0])
    of = f"layer {read.layers[layer]}, head {head}"
    figure.suptitle(f"{title}: {of}" if title else of, fontsize=10)
    return figure


def _gate_panels(read: Trace, layer: int, head: int) -> list[_Panel]:
    one = {name: getattr(read, name)[layer, :, head] for name in ("erase", "write", "content")}
    panels = [
        _Panel("kept: exp g", np.exp(read.log_decay[layer, :, head]), "key"),
        _Panel("erase gate: b", one["erase"], "key"),
        _Panel("write gate: w", one["write"], "value"),
        _Panel("content: m", one["content"], "value"),
    ]
    if not read.content.any():
        panels.pop()
    return [panel._replace(values=_without_repeats(panel.values)) for panel in panels]


def plot_by_head(
    values: Float[np.ndarray, "layers T N channels"],
    labels: Sequence[str],
    *,
    layers: Sequence[str],
    channels: str = "channel",
    top: float | None = None,
    title: str = "",
) -> Figure:
    """One quantity in small multiples: one row of pictures per layer, one column per head.

    Args:
      values: a field of a trace, such as `read.erase`, or what is made of one: a difference of
        two, or `singular_values(read)`. All pictures share one scale.
      labels: one word per token.
      layers: one name per layer: `read.layers`.
      channels: what a row of a picture is, such as "key channel".
      top: end of the scale, such as 1 for gates; the largest value if left out.
      title: over all.

    Raises:
      UserError: another number of labels than tokens.
    """
    rows, tokens, heads, _ = values.shape
    signed = bool(values.min() < 0)
    top = float(np.abs(values).max()) if top is None else top
    figure = _figure(min(2.0 + _width(tokens) * heads, 16), 0.7 + 1.9 * rows)
    grid = figure.subplots(rows, heads, sharex=True, sharey=True, squeeze=False)
    for row, name in enumerate(layers):
        for head in range(heads):
            axes = grid[row, head]
            image = _heat_map(axes, values[row, :, head].T, signed, top)
            axes.set_title(f"layer {name}, head {head}", loc="left", fontsize=9)
            axes.set_yticks([0, values.shape[-1] - 1])
        grid[row, 0].set_ylabel(channels, fontsize=8)
    for axes in grid[-1]:
        _label_tokens(axes, labels, tokens)
    figure.colorbar(image, ax=grid, pad=0.01, aspect=30)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_states(
    states: Float[np.ndarray, "T K V"],
    labels: Sequence[str],
    *,
    at: Sequence[int] | None = None,
    top: float | None = None,
    title: str = "",
) -> Figure:
    """The memory itself after some tokens, as matrices of key by value channels on one scale.

    Args:
      states: of one head: `read.state[layer, :, head]`, or what a rule returned.
      labels: one word per token.
      at: after which tokens to show it; by default eight, evenly spread.
      top: end of the scale; the largest entry shown if left out. Pictures that are to be compared
        need the same.
      title: over all.

    Raises:
      UserError: another number of labels than tokens, or a token that is not there.
    """
    tokens = len(states)
    _check_labels(labels, tokens)
    if at is None:
        at = np.unique(np.linspace(0, tokens - 1, min(8, tokens)).round().astype(int)).tolist()
    outside = [token for token in at if not 0 <= token < tokens]
    if outside or not len(at):
        raise UserError(f"at={list(at)}: give at least one token, from 0 to {tokens - 1}")
    columns = min(len(at), 8)
    rows = -(-len(at) // columns)
    height = min(max(1.5 * states.shape[1] / states.shape[2], 0.5), 4.0)
    figure = _figure(1.2 + 1.5 * columns, 0.8 + (0.45 + height) * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    top = float(np.abs(states[list(at)]).max()) if top is None else top
    for axes in grid.flat[len(at) :]:
        axes.set_axis_off()
    for axes, token in zip(grid.flat, at, strict=False):
        image = _heat_map(axes, states[token], True, top, aspect="equal")
        axes.set_title(f"after token {token}\n{labels[token]}", fontsize=9)
        axes.set_xticks([0, states.shape[2] - 1])
        axes.set_yticks([0, states.shape[1] - 1])
        axes.tick_params(labelsize=7, length=2)
    for axes in grid[:, 0]:
        axes.set_ylabel("key channel", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("value channel", fontsize=8)
    figure.colorbar(image, ax=grid, pad=0.01, aspect=15)
    figure.suptitle(title, fontsize=10)
    return figure


def _figure(width: float, height: float) -> Figure:
    # Not through pyplot: no window, no global state, and nothing to close.
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _width(tokens: int) -> float:
    return min(max(3.0, 1.6 + 0.17 * tokens), 13)


def _without_repeats(values: np.ndarray) -> np.ndarray:
    """A gate with one value per head needs one row."""
    return values[:, :1] if (values == values[:, :1]).all() else values


def _heat_map(
    axes: Axes, values: np.ndarray, signed: bool, top: float, aspect: Any = "auto"
) -> AxesImage:
    top = float(top) or 1.0  # Where all is 0 any scale will do.
    return axes.imshow(
        values,
        cmap=SIGNED if signed else SHARE,
        aspect=aspect,
        interpolation="nearest",
        vmin=-top if signed else 0.0,
        vmax=top,
    )


def _check_labels(labels: Sequence[str], tokens: int) -> None:
    if len(labels) != tokens:
        raise UserError(f"{len(labels)} labels for {tokens} tokens: give one per token")


def _label_tokens(axes: Axes, labels: Sequence[str], tokens: int) -> None:
    _check_labels(labels, tokens)
    every = -(-tokens // MOST_LABELS)
    shown = range(0, tokens, every)
    axes.set_xticks(list(shown), [labels[token] for token in shown])
    for text in axes.get_xticklabels():
        text.set_rotation(90 if len(text.get_text()) > 2 else 0)
    axes.tick_params(axis="x", labelsize=7, length=2)
    axes.set_xlabel("token", fontsize=8)
