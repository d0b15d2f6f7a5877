"""The plan as a table for people."""

import textwrap
from typing import Any

GB = 1e9
SENT = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


def table(record: dict[str, Any]) -> str:
    """Heading, figures of one model or two with their ratio, and what they rest on."""
    models = record["models"]
    each = list(models.values())
    first = each[0]
    rows: list[tuple[str, list[str]]] = [("", [*models, *(["ratio"] if len(each) == 2 else [])])]

    def add(name: str, values: list[float], scale: float, digits: int) -> None:
        cells = [f"{value / scale:,.{digits}f}" for value in values]
        if len(values) == 2:
            cells.append(f"{values[0] / values[1]:.3f}" if values[1] > 0 else "")
        rows.append((f"  {name}", cells))

    def title(text: str) -> None:
        rows.append((text, []))

    title("Memory of a device, GB")
    for part in first["bytes"]:
        add(part, [m["bytes"][part] for m in each], GB, 2)
    rows.append((f"  of {first['limit'] / GB:.1f}", [verdict(m) for m in each]))
    title("Arithmetic, GFLOP per token")
    add("model, forward and backward", [m["model_flops"] for m in each], 1e9, 3)
    add("with what is computed again", [m["flops"] for m in each], 1e9, 3)
    if record["chips"] > 1:
        title("Sent by a device in a step, GB")
        for kind in SENT:
            values = [m["bytes_sent"].get(kind, 0.0) for m in each]
            if any(values):
                add(kind, values, GB, 2)
        for label, sizes in parts_sent(each):
            add(f"  {label}", sizes, GB, 2)
    title(f"A step of {first['tokens']:,} tokens takes at least, seconds")
    for floor in first["floors"]:
        label = "all of them at once" if floor == "all" else floor
        add(label, [m["floors"][floor] for m in each], 1, 4)
    if first["traffic"] is not None:
        title("Its memory traffic as compiled, kernels of the rule apart")
        add("seconds", [m["traffic_seconds"] for m in each], 1, 4)
    for key, label in (
        ("at_the_floor", "At that floor"),
        ("assumed", f"Assuming {record['utilisation']:.0%} model FLOPs utilisation"),
    ):
        title(label)
        told = [m[key] for m in each]
        add("seconds per step", [t["step_seconds"] for t in told], 1, 3)
        add("tokens per day, billions", [t["tokens_a_day"] for t in told], 1e9, 2)
        add(f"days of {record['total_tokens'] / 1e9:g}B tokens", [t["days"] for t in told], 1, 1)
        add(f"cost at {record['price']:g} per chip and hour", [t["cost"] for t in told], 1, 0)
    return "\n".join([heading(record), "", *lay_out(rows), "", *notes(record)])


def parts_sent(models: list[dict[str, Any]]) -> list[tuple[str, list[float]]]:
    """The part of what is sent that is for the head inside the loss, if XLA's names tell it."""
    sizes = [
        sum(c["sent"] * c["turns"] for c in m["collectives"] if "/head/" in c["name"])
        for m in models
    ]
    turns = [c["turns"] for m in models for c in m["collectives"] if "/head/" in c["name"]]
    return [(f"of it for the head, {max(turns)} times per step", sizes)] if any(sizes) else []


def verdict(model: dict[str, Any]) -> str:
    """Whether it fits, and by how much."""
    left = (model["limit"] - model["bytes"]["peak"]) / GB
    return f"fits, {left:.1f} left" if left >= 0 else f"too much by {-left:.1f}"


def heading(record: dict[str, Any]) -> str:
    """Which models on which chips, and what the figures are."""
    models = record["models"]
    first = next(iter(models.values()))
    mesh = " ".join(f"{axis}={size}" for axis, size in first["mesh"].items())
    lines = [f"{' beside '.join(models)} on {record['chips']} x {record['kind']}, mesh {mesh}"]
    if record["compiled_for"] is None:
        lines.append("Estimated from shapes: nothing was compiled, nothing ran.")
    else:
        kernels = "/".join(dict.fromkeys(m["implementation"] for m in models.values()))
        lines.append(
            f"Compiled for {record['compiled_for']} with the rule {kernels!r}; nothing ran."
        )
    if record["compiled_for"] not in (None, record["kind"]):
        lines.append(f"That program stands for one of {record['kind']}: its memory is an estimate.")
    return "\n".join(lines)


def lay_out(rows: list[tuple[str, list[str]]]) -> list[str]:
    """Names to the left, figures in columns to the right."""
    name = max(len(row[0]) for row in rows)
    columns = max(len(row[1]) for row in rows)
    widths = [max(len(r[1][i]) for r in rows if len(r[1]) > i) for i in range(columns)]
    return [
        (
            label.ljust(name) + "".join(f"  {c:>{w}}" for c, w in zip(cells, widths, strict=False))
        ).rstrip()
        for label, cells in rows
    ]


def notes(record: dict[str, Any]) -> list[str]:
    """What the figures rest on."""
    share = 0.75 * next(iter(record["models"].values()))["limit"] / GB
    estimated = record["compiled_for"] is None
    text = (
        f"Rates are {record['rates']['source']}. Parameters, optimizer state and batch are exact; "
        "gradients and activations are by their shapes; working memory (a layer in backward, the "
        "loss, gathered weights) is "
    )
    text += (
        "a guess from the operations before XLA fuses any (for carve_1b3 on eight H100s 2.4 times "
        "what the compiled program holds). "
        if estimated
        else "what the compiled program holds besides. "
    )
    if estimated and record["chips"] > 1:
        text += "Sent is what the mesh calls for at least; the compiled program may send more. "
    text += (
        f"JAX takes {share:.1f} GB of such a device unless XLA_PYTHON_CLIENT_MEM_FRACTION says "
        "more; buffers of the collectives come on top."
    )
    return textwrap.wrap(text, 88)
