"""A run's train step, taken apart: compiled for a GPU that need not be there, nothing runs."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from carve_jax.accounting import forward_flops
from carve_jax.errors import UserError
from carve_jax.files import Each, check_shape, read_json
from carve_jax.training.settings import read_settings
from experiments.measuring.timing import peak_bytes
from experiments.planning import anatomy
from experiments.planning.budget import work
from experiments.planning.collectives import collectives
from experiments.planning.kernel_times import kernel_seconds
from experiments.planning.measured_steps import held_against
from experiments.planning.memory_traffic import kernels
from experiments.planning.rates import Rates
from experiments.planning.run_plan import compile_step, make_steps
from experiments.planning.target import Target, kernels_for

MOST = 40  # pieces that the record names
STEP = 256  # sequences are counted in multiples of this
RULE = {"rule forward": 1.0, "rule forward again": 1.0, "rule backward": 2.0}
"""FLOPs of the rule's passes, in forward passes of the recurrence."""
KERNELS = (
    "predicted by pallas_kernels.compiling from the instructions they execute, scaled from the "
    "official call (calibrated on twelve kernels of 2026-11-27: 9% root mean square, 22% at most)"
)
GB, TERA, MS = 1e9, 1e12, 1e-3


def anatomise(
    config: ConfigDict, target: Target, sizes: dict[str, int], rates: Rates
) -> dict[str, Any]:
    """FLOPs, bytes and predicted seconds of each part of a device's step.

    FLOPs are those of products of matrices; of our kernels, those that the recurrence itself
    needs (`forward_flops`), since the text does not show theirs.

    Raises:
      UserError: a bad config, a mesh that does not fit, or nothing to compile with.
    """
    if target.how != "gpu":
        raise UserError("--anatomy reads a program for a GPU: give --compile=gpu, or leave it out")
    settings = read_settings(config)
    with kernels_for(target):
        model, _, steps = make_steps(config, settings, target, sizes)
        compiled = compile_step(config, steps)
    step, text = work(config, model.config), compiled.as_text() or ""
    ours = kernel_seconds(model.config, settings.rows, settings.sequence_length, sizes, step.turns)
    pieces = anatomy.dissect(kernels(text), collectives(text, target.chips), rates, ours)
    parts = anatomy.table_of_parts(pieces)
    recurrence = forward_flops(model.config, -(-settings.sequence_length // STEP) * STEP)["rule"]
    for part, passes in RULE.items():
        if any(piece.ours and piece.part == part for piece in pieces):
            parts[part]["flops"] += passes * recurrence * step.tokens / target.chips
    seconds = sum(piece.seconds for piece in pieces)
    held = held_against(
        model.config, settings.rows, settings.sequence_length, target.chip.kind, pieces
    )
    return {
        "mesh": sizes,
        "rows": settings.batch_size,
        "length": settings.sequence_length,
        "remat": model.config.remat,
        "scan_layers": model.config.scan_layers,
        "pattern": list(model.config.pattern),
        "seconds": seconds,
        "tokens_per_second": step.tokens / seconds,
        "peak_bytes": peak_bytes(compiled),
        "parts": parts,
        "done_twice": anatomy.done_twice(pieces),
        "kernels": {"source": KERNELS, **{"/".join(key): value for key, value in ours.items()}},
        "longest": anatomy.longest(pieces, MOST),
        "measured_step": held if target.chips == 1 else None,
    }


def add_entries(path: Path, entries: dict[str, Any]) -> dict[str, Any]:
    """A result's content with these entries: what else the file has, if it is there, stays.

    Raises:
      UserError: the file is no result of this command.
    """
    try:
        before = read_json(path, mend="give another --output")
        check_shape(before, {"anatomy": Each({"parts": dict})})
    except FileNotFoundError:
        return {"anatomy": entries}
    except ValueError as error:
        raise UserError(f"--output={path} holds no anatomy ({error}): give another") from error
    return {"anatomy": before["anatomy"] | entries}


def table(entries: dict[str, Any]) -> str:
    """The parts of each step, and what they come to."""
    return "\n\n".join(_step(name, entry) for name, entry in entries.items())


def _step(name: str, entry: dict[str, Any]) -> str:
    chips = f"{entry['chips']} x {entry['kind']}"
    lines = [
        f"{name} on {chips}, {entry['rows']} x {entry['length']} tokens: predicted, not measured",
        _row("", "TFLOP", "GB", "ms", "share", *(f"{p} ms" for p in anatomy.PASSES)),
    ]
    for part, has in entry["parts"].items():
        passes = (has.get(f"seconds {p}", 0.0) / MS for p in anatomy.PASSES)
        lines.append(
            _row(
                part,
                f"{has['flops'] / TERA:.1f}",
                f"{has['bytes'] / GB:.1f}",
                f"{has['seconds'] / MS:.1f}",
                f"{has['seconds'] / entry['seconds']:.1%}",
                *(f"{ms:.1f}" if ms else "" for ms in passes),
            )
        )
    lines += [
        f"A step {entry['seconds'] / MS:.1f} ms, {entry['tokens_per_second']:,.0f} tokens/s, "
        f"{entry['peak_bytes'] / GB:.1f} GB of a device",
        *textwrap.wrap(
            "Done twice, ms: "
            + "; ".join(f"{part} {s / MS:.1f}" for part, s in entry["done_twice"].items()),
            100,
        ),
    ]
    if held := entry["measured_step"]:
        measured = held["seconds"] / MS
        told = (
            f"{how} {found['error']:+.1%}"
            for how, found in held["with the kernels of then"].items()
        )
        lines.append(f"Measured {measured:.0f} ms with the kernels of then: " + ", ".join(told))
    notes = f"Rates: {entry['rates']['source']}. Kernels: {KERNELS}."
    return "\n".join([*lines, *textwrap.wrap(notes, 100)])


def _row(name: str, *cells: str) -> str:
    columns: Sequence[str] = [f"{cell:>11}" for cell in cells]
    return (f"{name:<30}" + "".join(columns)).rstrip()
