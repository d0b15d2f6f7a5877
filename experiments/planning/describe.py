"""What a model costs, printed before it is trained; `experiments.train --describe` calls it."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from carve_jax.accounting import Costs, costs
from carve_jax.config import LMConfig
from carve_jax.training.settings import make_model_config

LONG = 131072  # tokens, beside the training length, for which the cache is given
STEP = 256  # sequences are counted in multiples of this
TWINS = {"carve": "gdn2", "gdn2": "carve"}


def twin(config: ConfigDict) -> ConfigDict | None:
    """The config with GDN-2 for CARVE and CARVE for GDN-2; None if it has neither."""
    if not TWINS.keys() & set(config.model.pattern):
        return None
    other = copy.deepcopy(config)
    other.model.pattern = exchanged(config.model.pattern)
    return other


def exchanged(pattern: Iterable[str]) -> tuple[str, ...]:
    """The pattern with GDN-2 for CARVE and CARVE for GDN-2."""
    return tuple(TWINS.get(name, name) for name in pattern)


def are_twins(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether one pattern has CARVE wherever the other has GDN-2, and they are else the same."""
    recurrent = [set(pattern) & TWINS.keys() for pattern in (first, second)]
    return tuple(second) == exchanged(first) and sorted(map(len, recurrent)) == [1, 1]


def describe(config: ConfigDict, other: ConfigDict | None) -> str:
    """A table of the model's costs, beside those of another if one is given.

    Raises:
      UserError: a section `model` that LMConfig refuses.
    """
    models = [make_model_config(c) for c in (config, other) if c is not None]
    context = -(-config.sequence_length // STEP) * STEP
    found = [costs(model, context=context, cache_lengths=(context, LONG)) for model in models]
    heads = [heading(model) for model in models]
    table = [("", *heads, *(["ratio"] if other is not None else []))]
    for name, *values in rows(found, context):
        cells = [number(value) for value in values]
        if other is not None:
            first, second = values
            cells.append(f"{first / second:.3f}" if first and second else "")
        table.append((name, *cells))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in table
    ]
    lines += [
        f"\nOf a sequence of {context} tokens. Activations are those that backward keeps, with",
        f"remat={models[0].remat!r} and the rule as it runs on this device.",
    ]
    if other is not None and are_twins(models[0].pattern, models[1].pattern):
        by_mixer = {name: cost for cost in found for name in cost.mixers.keys() & TWINS.keys()}
        lines.append(against(by_mixer["carve"], by_mixer["gdn2"]))
    return "\n".join(lines)


def heading(model: LMConfig) -> str:
    """The pattern, and how often it is repeated."""
    return f"{model.repeats} x {'+'.join(model.pattern)}"


def rows(found: list[Costs], context: int) -> list[tuple[Any, ...]]:
    """Names of the rows, each with one value per model."""
    table: list[tuple[Any, ...]] = []

    def add(name: str, values: list[float | None]) -> None:
        if any(values):
            table.append((name, *values))

    names = dict.fromkeys(n for cost in found for m in cost.mixers.values() for n in m)
    for name in names:
        add(f"mixer {name}", [sum(m.get(name, 0) for m in c.mixers.values()) for c in found])
    for part in found[0].parameters:
        add(f"parameters, {part}", [cost.parameters[part] for cost in found])
    outside = [
        c.parameters["total"] - c.parameters["embedding"] - c.parameters["head"] for c in found
    ]
    add("parameters but embedding and head", list(outside))
    add("recurrent state, floats per layer", [max(c.state.values(), default=0) for c in found])
    for length in (context, LONG):
        add(f"cache of {length} tokens, bytes", [cost.cache_bytes[length] for cost in found])
    for part in found[0].forward_flops:
        add(f"forward FLOPs per token, {part}", [cost.forward_flops[part] for cost in found])
    add("training FLOPs per token", [cost.train_flops for cost in found])
    add("activation bytes per token", [cost.activation_bytes for cost in found])
    return table


def number(value: float) -> str:
    """The value as a whole number, thousands separated."""
    return f"{round(value):,}"


def against(carve: Costs, gdn2: Costs) -> str:
    """What CARVE saves against GDN-2 in the same pattern, by what one counts."""

    def change(count: Callable[[Costs], int]) -> str:
        saved = 1 - count(carve) / count(gdn2)
        return f"{100 * abs(saved):.1f}% {'fewer' if saved >= 0 else 'more'}"

    def fed(cost: Costs) -> int:
        recurrent = [m for name, m in cost.mixers.items() if name in TWINS]
        return sum(size for m in recurrent for name, size in m.items() if name != "o_proj")

    def gated(cost: Costs) -> int:
        return sum(sum(m.values()) for name, m in cost.mixers.items() if name in TWINS)

    # The paper counts at the size of its own models, whose ratio of widths tiny ones do not have.
    official = gdn2.parameters["total"] > 1e9
    beside = " (the count nearest to the paper's 19%)" if official else ""
    return (
        f"\nCARVE has {change(gated)} parameters than GDN-2 in the layers that differ,\n"
        f"{change(fed)} without their output projection{beside},\n"
        f"{change(lambda cost: cost.parameters['mixer'])} in all mixers and "
        f"{change(lambda cost: cost.parameters['total'])} in the model."
    )
