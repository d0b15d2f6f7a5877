"""A predicted step held against the steps that were measured on one H100 (2026-11-27).

They ran with kernels that have been rewritten since. So the rule's kernels are taken at the times
measured of them then, on twice the rows: what scans the sequence (`_walk…`) takes as long for half
as many programs where its own code bounds it, and half where its bytes do; what is parallel over
the sequence takes half. All else is as predicted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from carve_jax.config import LMConfig
from carve_jax.files import read_json
from experiments.measuring.train_steps import LAYER_SIZES
from experiments.planning.anatomy import Piece
from experiments.planning.rates import FIGURES

ROWS, LENGTH, RULE_ROWS = 4, 4096, 8  # of the steps, and of the rules that were timed alone
ALIKE = (*LAYER_SIZES, "remat")


def held_against(
    model: LMConfig, rows: int, length: int, kind: str, pieces: Sequence[Piece]
) -> dict[str, Any] | None:
    """The measured step of this model and the prediction's error, or None if none was measured.

    Args:
      model: of the step.
      rows: of a device's batch.
      length: tokens of a row.
      kind: of the device.
      pieces: of the predicted step.
    """
    figures = read_json(FIGURES)
    wanted = {**LAYER_SIZES, "remat": "full"}
    alike = all(getattr(model, name) == wanted[name] for name in ALIKE)
    name = model.pattern[0]
    measured = figures["train_step"].get(name)
    if not alike or len(model.pattern) > 1 or measured is None:
        return None
    if (rows, length, kind) != (ROWS, LENGTH, figures["device"]):
        return None
    rest = sum(piece.seconds for piece in pieces if not piece.ours)
    seconds = measured["milliseconds"] / 1e3
    found: dict[str, Any] = {}
    for label, walks in (("scans as long", 1.0), ("scans half as long", ROWS / RULE_ROWS)):
        rule = model.layers * _rule_seconds(figures["kernels_ms"], name, walks)
        found[label] = {
            "rule_seconds": rule,
            "predicted_seconds": rest + rule,
            "error": (rest + rule) / seconds - 1,
        }
    return {
        "seconds": seconds,
        "source": f"{FIGURES.parent.name}/{FIGURES.name}",
        "with the kernels of then": found,
    }


def _rule_seconds(kernels: Mapping[str, Any], name: str, walks: float) -> float:
    """One layer's kernels: forward, forward again, and backward."""

    def seconds(phase: str) -> float:
        return sum(
            part["ms"] / 1e3 * (walks if "walk" in kernel else ROWS / RULE_ROWS)
            for kernel, part in kernels[f"{name} pallas, {phase}"].items()
            if kernel.startswith("_")
        )

    return seconds("forward") + seconds("forward+backward")
