"""The recorded figures of `budgets.json`: what kernels may take, and whether they still do.

Counting takes XLA for a GPU and minutes, so the result is committed, with a fingerprint of the
kernels' sources: a quick test fails when they have changed since, and names the command.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pallas_kernels.compiling import counts, xla
from pallas_kernels.compiling.counts import Counted

RECORD = Path(__file__).with_name("budgets.json")
PACKAGE = Path(__file__).parents[1]
SOURCES = ("triton/*.py", "blocks/*.py", "decode/*.py")
COMMAND = "python -m pallas_kernels.aot --compiler=xla --record"
SLACK = 1.01  # of instructions: an assembler of another version schedules otherwise


class Budget(NamedTuple):
    """The most warp instructions for 64 tokens of a head (official size, bfloat16).

    Attributes:
      program: which one's.
      phase: "forward" or "backward".
      kernels: counted together.
      instructions: their most.
    """

    program: str
    phase: str
    kernels: tuple[str, ...]
    instructions: int


GRADIENTS = ("_pairs_kernel", "_gradients_kernel")
BUDGETS = (
    Budget("gdn2", "forward", ("_span_kernel",), 28_000),
    Budget("carve", "forward", ("_span_kernel",), 19_000),
    Budget("carve", "forward", ("_walk_kernel",), 26_000),
    Budget("gdn2", "backward", GRADIENTS, 55_000),
    Budget("carve", "backward", GRADIENTS, 55_000),
)
# Missed so far, as docs/results.md says; a test fails where one is met, or another is missed. The
# gradients' are missed by choice: blocks of 64 key channels take 50,000, and spill, and on an H200
# 10% to 15% more time than blocks of 32.
MISSED = (
    "gdn2, backward, _pairs_kernel + _gradients_kernel",
    "carve, backward, _pairs_kernel + _gradients_kernel",
    "carve/128x128c64/bfloat16/forward/_walk_kernel",
    "carve/128x128c64/bfloat16/backward/_walk_back_kernel",
)
OFFICIAL = "128x128c"  # tiles of the official size: nothing but their chunk follows
SPILL_FREE = ("_walk_kernel", "_walk_back_kernel")


def fingerprint(package: Path = PACKAGE) -> str:
    """Digest of the kernels' sources without comments and docstrings, and of the table of tiles."""
    digest = hashlib.sha256()
    for path in sorted(p for pattern in SOURCES for p in package.glob(pattern)):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode())
        digest.update("\n".join(_meaning(ast.parse(path.read_text(encoding="utf-8")))).encode())
    digest.update(
        json.dumps(json.loads((package / "tiles.json").read_text(encoding="utf-8"))).encode()
    )
    return digest.hexdigest()[:16]


def _meaning(node: ast.AST) -> Iterator[str]:
    """A syntax tree without docstrings, alike in every version of Python."""
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        if name in ("ctx", "kind", "type_comment", "type_params", "type_ignores"):
            continue
        values = value if isinstance(value, list) else [value]
        if name == "body" and isinstance(value, list) and ast.get_docstring(_holder(node)):
            values = values[1:]
        for child in values:
            if isinstance(child, ast.AST):
                yield f"{name}:"
                yield from _meaning(child)
            elif child is not None:
                yield f"{name}={child!r}"
        yield f"/{name}" if values and values != [None] else ""


def _holder(node: ast.AST) -> Any:
    """A node that may have a docstring; an empty module for all others."""
    holds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return node if isinstance(node, holds) else ast.Module([], [])


def record(found: Sequence[Counted], arch: str) -> dict[str, Any]:
    """What `budgets.json` holds: versions, the sources' fingerprint, and one row per kernel."""
    rows = [row for counted in found for row in counted.kernels]
    return {
        "arch": arch,
        "fingerprint": fingerprint(),
        **xla.versions(),
        "kernels": {row.key: counts.as_json(row) for row in rows},
    }


def merge(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """The record of some programs put into that of all; what is left of the old one keeps the old
    fingerprint where it is another."""
    kernels = {**old.get("kernels", {}), **new["kernels"]}
    whole = {**new, "kernels": dict(sorted(kernels.items()))}
    if old.get("fingerprint", whole["fingerprint"]) != whole["fingerprint"]:
        whole["fingerprint"] = old["fingerprint"]
    return whole


def over_budget(kernels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence for each budget that the kernels of a record exceed."""
    failures = []
    for budget in BUDGETS:
        rows = list(_rows(kernels, budget.program, budget.phase, budget.kernels))
        total = sum(row["for_64_tokens"] for _, row in rows)
        if total > budget.instructions:
            failures.append(
                f"{budget.program}, {budget.phase}, {' + '.join(budget.kernels)}: {total:,} warp "
                f"instructions for 64 tokens of a head; the budget is {budget.instructions:,}"
            )
    for program in ("gdn2", "carve"):
        for phase in ("forward", "backward"):
            for key, row in _rows(kernels, program, phase, SPILL_FREE):
                if row["spills"]:
                    failures.append(f"{key}: {row['spills']} bytes of spills in a scan; none may")
    return failures


def _rows(
    kernels: Mapping[str, Mapping[str, Any]], program: str, phase: str, names: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of some kernels at the official size."""
    for key, row in kernels.items():
        found, tile, dtype, when, kernel = key.split("/")
        official = tile.removeprefix(OFFICIAL).isdigit() and dtype == "bfloat16"
        if official and (found, when) == (program, phase) and kernel.partition("#")[0] in names:
            yield key, row


def worse(new: Mapping[str, Any], old: Mapping[str, Any], whole: bool) -> list[str]:
    """One sentence for each kernel that takes more than recorded, or is not recorded.

    Args:
      new: as counted now.
      old: the committed record.
      whole: all programs were counted, so that what is recorded and was not counted is gone.
    """
    recorded = old.get("kernels", {})
    failures = []
    if old.get("fingerprint") != new["fingerprint"]:
        failures.append(f"the record is of other sources; run {COMMAND}")
    for key, row in new["kernels"].items():
        if key not in recorded:
            failures.append(f"{key}: not recorded; look at it, then run {COMMAND}")
            continue
        limits = {"instructions": SLACK, "registers": 1.0, "spills": 1.0, "shared": 1.0}
        for what, slack in limits.items():
            if row[what] > slack * recorded[key][what]:
                failures.append(f"{key}: {row[what]} {what}, recorded {recorded[key][what]}")
    if whole:
        gone = sorted(recorded.keys() - new["kernels"].keys())
        failures += [f"{key}: recorded, and no kernel any more; run {COMMAND}" for key in gone]
    return failures
