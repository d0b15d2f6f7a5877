"""What tile and what hybrid are cheapest: a cost model made before the clock is looked at.

Tiles: a token costs its arithmetic, which grows with the tile C, at the rate of a large product;
and a tile costs what it takes to start its operations, measured on the rule with a few channels,
where arithmetic is nothing. Hybrids: a token costs its FLOPs (`carve_jax.accounting`). Quality is
not part of it: by cost alone the best ratio is all of one kind, and the context says of which.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from carve_jax.accounting import forward_flops
from carve_jax.config import LMConfig
from carve_jax.model import LanguageModel
from carve_jax.ops.gated_delta import gated_delta_rule
from experiments.measuring.floors import floors
from experiments.measuring.rule_calls import DIRECTIONS, Shape, rule_arguments, rule_inputs
from experiments.measuring.timing import (
    Contender,
    contender,
    machine_ceilings,
    median_seconds,
    with_gradients,
)
from experiments.theory.figures import COLOURS, INK, label, legend, panels, style
from experiments.theory.finding import Check, Experiment, Finding, Number

RULE, HYBRID, ATTENTION = "gdn2", "gdn2 3 : 1 attention", "attention"
PATTERNS = {
    RULE: ("gdn2",),
    HYBRID: ("gdn2", "gdn2", "gdn2", "attention"),
    ATTENTION: ("attention",),
}


class Sizes(NamedTuple):
    """What is measured.

    Attributes:
      shape: of the rule, forward and backward.
      tiles: C, tokens.
      model: fields of the models, forward.
      contexts: tokens of their rows, two.
      repeats: timed rounds.
      backward: whether the rule is timed with its gradients, as it is predicted.
    """

    shape: Shape
    tiles: tuple[int, ...]
    model: dict[str, Any]
    contexts: tuple[int, int]
    repeats: int
    backward: bool = True


FULL = Sizes(
    Shape(1, 1024, 4, 64),
    (16, 32, 64, 128),
    {"d_model": 128, "num_heads": 4, "key_dim": 32, "value_dim": 32, "mlp_dim": 256, "layers": 4},
    (256, 1024),
    9,
)
QUICK = Sizes(
    Shape(1, 64, 1, 16),
    (16, 32),
    {"d_model": 16, "num_heads": 1, "key_dim": 16, "value_dim": 16, "mlp_dim": 16, "layers": 4},
    (32, 64),
    1,
    backward=False,  # which compiles in a third of the time
)


def ranks_agree(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Spearman's rank correlation, ties apart."""
    first, second = (np.argsort(np.argsort(x)) for x in (predicted, measured))
    return float(np.corrcoef(first, second)[0, 1])


def regret(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Measured time of the choice predicted to be best, over the best measured."""
    return float(measured[np.argmin(predicted)] / measured.min())


def tile_contender(shape: Shape, tile: int, backward: bool) -> Contender:
    """GDN-2 in tiles of so many tokens."""
    x = rule_inputs(shape)

    def rule(*arguments: jax.Array) -> jax.Array:
        return gated_delta_rule(*arguments, chunk_size=tile, implementation="chunked")[0]

    run = with_gradients(rule, x["cotangent"]) if backward else rule
    return contender(run, *rule_arguments(x, "gdn2"))


def measure_tiles(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and measured seconds of the rule by tile."""
    rate = machine_ceilings(sizes.repeats)
    tiny = sizes.shape._replace(heads=1, channels=4)
    plans = {str(tile): (sizes.shape, tile) for tile in sizes.tiles}
    plans["start"] = (tiny, sizes.tiles[0])
    contenders = {name: tile_contender(*plan, sizes.backward) for name, plan in plans.items()}
    seconds = median_seconds(contenders, sizes.repeats)
    start = seconds["start"] / (tiny.length / sizes.tiles[0])

    def arithmetic(tile: int) -> float:
        least = floors(sizes.shape, RULE, DIRECTIONS[1], "float32", rate, tile=tile)
        return least["arithmetic_seconds"]

    predicted = [arithmetic(tile) + start * sizes.shape.length / tile for tile in sizes.tiles]
    return np.array(predicted), np.array([seconds[str(tile)] for tile in sizes.tiles])


def model_config(sizes: Sizes, name: str) -> LMConfig:
    """The model of that pattern."""
    return LMConfig(pattern=PATTERNS[name], implementation="chunked", **sizes.model)


def model_contender(config: LMConfig, context: int) -> Contender:
    """A forward pass over one row."""
    model = LanguageModel(config)
    tokens = jnp.zeros((1, context), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)
    return contender(lambda params: model.apply({"params": params}, tokens)[0], params)


def measure_models(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """FLOPs and measured seconds per token, [patterns, contexts]."""
    pairs = [(name, context) for name in PATTERNS for context in sizes.contexts]
    configs = {name: model_config(sizes, name) for name in PATTERNS}
    flop = [sum(forward_flops(configs[name], context).values()) for name, context in pairs]
    contenders = {str(p): model_contender(configs[p[0]], p[1]) for p in pairs}
    seconds = median_seconds(contenders, sizes.repeats)
    shape = (len(PATTERNS), len(sizes.contexts))
    measured = np.array([seconds[str(p)] / p[1] for p in pairs])
    return np.array(flop).reshape(shape), measured.reshape(shape)


def crossing(contexts: tuple[int, int], rule: np.ndarray, attention: np.ndarray) -> float:
    """Context at which a token costs the same in both, from its costs at two: the rule's are
    constant, attention's a line. Not a number where the line does not rise."""
    rise = (attention[1] - attention[0]) / (contexts[1] - contexts[0])
    if rise <= 0:
        return float("nan")
    return float(contexts[0] + (rule.mean() - attention[0]) / rise)


def measure(quick: bool) -> Finding:
    """Both cost models against the clock."""
    sizes = QUICK if quick else FULL
    predicted, seconds = measure_tiles(sizes)
    flop, each = measure_models(sizes)
    mixed = (3 * each[0] + each[2]) / 4
    crossings = [crossing(sizes.contexts, x[0], x[2]) for x in (flop, each)]
    best, found = (sizes.tiles[int(np.argmin(x))] for x in (predicted, seconds))
    lost = regret(predicted, seconds)
    checks = [
        Check("time of the tile predicted to be best, over the best", lost, at_most=1.25),
        Check("rank correlation of predicted and measured times by tile",
              ranks_agree(predicted, seconds), at_least=0.8, edge=True),
        Check("measured over predicted time, largest of all tiles",
              float((seconds / predicted).max()), at_most=3, edge=True),
        Check("rank correlation of FLOPs and times per token of models and contexts",
              ranks_agree(flop.ravel(), each.ravel()), at_least=0.8),
        Check("time of the hybrid over the mean of its layers' times, furthest from 1",
              float(np.abs(each[1] / mixed - 1).max()), at_most=0.25, edge=True),
    ]  # fmt: skip
    numbers = [
        Number("tile predicted to be best", best, "tokens"),
        Number("tile measured to be best", found, "tokens"),
        *(
            Number(f"time at a tile of {tile}, {what}", 1e3 * value, "ms")
            for tile, pair in zip(sizes.tiles, zip(predicted, seconds, strict=True), strict=True)
            for what, value in zip(("predicted", "measured"), pair, strict=True)
        ),
        *(
            Number(f"time per token, {name}, {context} tokens", 1e6 * float(value), "µs")
            for name, row in zip(PATTERNS, each, strict=True)
            for context, value in zip(sizes.contexts, row, strict=True)
        ),
        Number("context at which an attention model costs as many FLOPs", crossings[0], "tokens"),
    ]
    if np.isfinite(crossings[1]):
        numbers.append(Number("context at which it takes as long", crossings[1], "tokens"))
    return Finding(
        title="Arithmetic and starts say which tile and which hybrid are fast",
        found=f"Predicted best tile {best}, measured {found} ({lost:.2f} of the best time); FLOPs "
        f"say attention costs as much at {crossings[0]:.0f} tokens, the clock {crossings[1]:.0f}",
        claim="Arithmetic and a start a tile, both measured elsewhere, say which tile is best to "
        "within a quarter of its time, and FLOPs rank models from all gdn2 to all attention by "
        "time per token. Beyond the core: all tiles are ranked, times are predicted within three "
        "times, and a hybrid takes the mean of its layers' times (edges).",
        setup=f"rule: forward and backward at {sizes.shape.label} (B T H D), float32; models: "
        f"forward, {sizes.model}, one row of {sizes.contexts}; medians of {sizes.repeats} rounds "
        "in turn on a CPU that others may be using",
        checks=tuple(checks),
        numbers=tuple(numbers),
        curves={
            "sizes": sizes, "predicted": predicted, "seconds": seconds, "flop": flop, "each": each,
        },
    )  # fmt: skip


def draw(figure: Figure, finding: Finding) -> None:
    """Time by tile; time per token by context for each model, beside its FLOPs."""
    left, right = panels(figure, 2)
    curves = finding.curves
    sizes = curves["sizes"]
    left.plot(sizes.tiles, 1e3 * curves["seconds"], label="measured", **style(0))
    left.plot(sizes.tiles, 1e3 * curves["predicted"], label="predicted", **style(1))
    left.set_xscale("log", base=2)
    left.set_ylim(bottom=0)
    legend(left)
    label(left, "tile C, tokens", "ms", "The rule, forward and backward")
    rate = curves["flop"].sum() / curves["each"].sum()
    for index, name in enumerate(PATTERNS):
        look = style(index, of=len(PATTERNS))
        right.plot(sizes.contexts, 1e6 * curves["each"][index], label=name, **look)
        right.plot(sizes.contexts, 1e6 * curves["flop"][index] / rate, ":", color=COLOURS[index])
    right.plot([], [], ":", color=INK, label="FLOPs at one rate")
    right.set_xscale("log", base=2)
    right.set_ylim(bottom=0)
    legend(right)
    label(right, "context, tokens", "µs per token", "Models, forward")


EXPERIMENT = Experiment(measure, draw)
