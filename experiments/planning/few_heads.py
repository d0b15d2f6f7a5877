"""Few rows and heads: what the rules take by rows × heads (B·H), and in stretches: predicted.

As `kernel_times`, from the record of the kernels (`pallas_kernels/compiling/budgets.json`), at
K = V = 128 in bfloat16 on an H100; here a call is cut as the kernels' own plan cuts it. A wave of a
kernel's programs takes what it takes in the record, a scan's in proportion to its tiles; bytes go
by tokens and heads. GDN-2's scan of few heads, in narrower blocks of value channels, is recorded
for each width.

In stretches (`pallas_kernels.triton.stretches`) scans are those recorded of 8 stretches of 16
heads. What that adds besides is assumed: `SCAN_LAUNCH` for each scan more, which a CARVE scan's
launch was measured to take besides its work, and `STEP` for each of XLA's steps that compose.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.compiling.budgets import RECORD
from pallas_kernels.compiling.catalogue import (
    FEW_HEADS,
    HALF_BLOCKS,
    OFFICIAL,
    STRETCHES,
    Size,
    planned,
)
from pallas_kernels.compiling.chips import CHIPS
from pallas_kernels.compiling.predict import together
from pallas_kernels.tiling import Tiles, choose
from pallas_kernels.triton.plan import Plan

WIDTH, DTYPE = 128, "bfloat16"
CHIP = CHIPS["sm_90"]
SCAN_LAUNCH, STEP = 10e-3, 5e-3  # milliseconds
STATE = 4 * WIDTH * WIDTH  # bytes
RECORDED = {128: OFFICIAL, 64: HALF_BLOCKS, 32: FEW_HEADS}  # by value channels of a program
ENDS = {
    **{"forward/_walk_kernel": 1, "forward/_walk_kernel#2": 2, "forward/_walk_kernel#3": 0},
    **{"backward/_walk_back_kernel": 1, "backward/_walk_kernel": 0},
    "backward/_walk_back_kernel#2": 0,
}
"""Scans of a part in stretches, and how many of the stretches each leaves out."""
LENGTHS = (4096, 32768, 131072)
HEADS = (1, 2, 4, 8, 16, 32, 64, 128)
ALL_HEADS = (*HEADS, 256)
TRIED = (2, 4, 8, 16, 32, 64)
SOURCE = (
    "predicted for one H100 from the instructions that the kernels execute "
    "(pallas_kernels/compiling/budgets.json), K = V = 128 in bfloat16; nothing of it was measured"
)


class Times(NamedTuple):
    """Predicted milliseconds of one call.

    Attributes:
      forward: of the forward pass.
      both: with the backward pass.
      scans: of it the forward pass's scans of the sequence.
      parts, stretches: that the sequence is cut into, and each part.
    """

    forward: float
    both: float
    scans: float
    parts: int
    stretches: int


def predicted(rule: str, heads: int, length: int, stretches: int = 1, spread: bool = True) -> Times:
    """Times of one call.

    Args:
      rule: "gdn2" or "carve".
      heads: B·H.
      length: T.
      stretches: as in `Tiles`, for GDN-2.
      spread: whether value channels of few heads are spread over programs, as the kernels do it.

    Raises:
      KeyError: kernels that are not recorded.
    """
    plan, whole = _plan(rule, heads, length, stretches)
    block = plan.tiles.block_value if spread else WIDTH
    size = RECORDED[WIDTH if rule == "carve" else block]
    name = rule
    if plan.stretches > 1:
        name, size = "gdn2_stretches", FEW_HEADS
    tokens = heads * whole / plan.parts
    found = {}
    for kernel, row in _recorded(name, size):
        recorded = size.batch * size.value_heads * size.length / row["launches"]
        part = {**row, "scale": tokens / recorded}
        if plan.stretches > 1 and kernel in ENDS:
            found[kernel] = _of_stretches(part, plan, heads, whole, ENDS[kernel])
        elif "_walk" in kernel:
            tiles = whole * row["launches"] / (plan.parts * size.length)
            found[kernel] = _of_part(part, tiles, heads * row["programs"] / _heads(size))
        else:
            found[kernel] = _of_part(part, 1.0, row["programs"] * part["scale"])
    if plan.stretches > 1:
        composing = _composing(plan.stretches, heads)
        found |= {"forward/composing": composing + 2 * SCAN_LAUNCH}
        found |= {"backward/composing": composing + SCAN_LAUNCH}
    forward, scans = (
        plan.parts * sum(ms for kernel, ms in found.items() if kernel.startswith(start))
        for start in ("forward", "forward/_walk")
    )
    both = plan.parts * sum(found.values())
    forward, both, scans = (round(ms, 4) for ms in (forward, both, scans))
    return Times(forward, both, scans, plan.parts, plan.stretches)


def _plan(rule: str, heads: int, length: int, stretches: int) -> tuple[Plan, int]:
    tiles = choose(DTYPE, WIDTH, WIDTH, CHIP.device_kind, rule == "carve", CHIP.capability)
    tiles = Tiles(**{**vars(tiles), "stretches": stretches})
    return planned(rule, DTYPE, WIDTH, WIDTH, tiles, Size(1, length, heads, heads))


def _heads(size: Size) -> int:
    return size.batch * size.value_heads


def _recorded(name: str, size: Size) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Phase and name of each kernel of a program, and its record."""
    start = f"{name}/{WIDTH}x{WIDTH}c64{size.label}/{DTYPE}/"
    kernels = json.loads(RECORD.read_text(encoding="utf-8"))["kernels"]
    found = {key.removeprefix(start): kernels[key] for key in kernels if key.startswith(start)}
    if not found:
        raise KeyError(f"no kernels of {start} are recorded: see pallas_kernels.aot --record")
    yield from found.items()


def _wave(row: Mapping[str, Any]) -> float:
    """Milliseconds of a wave of programs as recorded."""
    return float(row["code_ms"] / row["launches"] / _waves(row, row["programs"]))


def _waves(row: Mapping[str, Any], programs: float) -> int:
    return math.ceil(programs / (CHIP.multiprocessors * row["blocks"]))


def _of_part(row: Mapping[str, Any], longer: float, programs: float) -> float:
    """Milliseconds of a launch of so many programs, each so many times as long as recorded."""
    code = _wave(row) * longer * _waves(row, programs)
    return together(code, row["bytes_ms"] / row["launches"] * row["scale"])


def _of_stretches(
    row: Mapping[str, Any], plan: Plan, heads: int, whole: int, left_out: int
) -> float:
    """Milliseconds of a scan of a part in stretches, of which so many are left out. It reads and
    writes a state for each, besides the tiles."""
    scanned, then = plan.stretches - left_out, STRETCHES - left_out
    tiles = whole / (plan.parts * plan.stretches * SPAN)
    longer = tiles / (FEW_HEADS.length / (STRETCHES * SPAN))
    code = _wave(row) * longer * _waves(row, heads * scanned)
    states, recorded = (
        2 * STATE * n / CHIP.bytes_per_second * 1e3
        for n in (heads * scanned, _heads(FEW_HEADS) * then)
    )
    share = (scanned / plan.stretches) / (then / STRETCHES)
    return together(code, (row["bytes_ms"] - recorded) * row["scale"] * share + states)


def _composing(stretches: int, heads: int) -> float:
    """Milliseconds of XLA's steps for a part: a product and a sum for each state but two, and what
    lays states side by side; and of the bytes, six states for each."""
    steps = 2 * (stretches - 2) + 3
    return steps * STEP + 6 * heads * stretches * STATE / CHIP.bytes_per_second * 1e3


def best(heads: int, length: int, both: bool) -> Times:
    """The fastest of GDN-2's calls in stretches, by its forward pass or with the backward pass."""
    found = [predicted("gdn2", heads, length, each) for each in TRIED if each <= length // SPAN]
    return min(found, key=lambda times: times.both if both else times.forward)


def table(record: Mapping[str, Any]) -> str:
    """The record as text."""
    lines = [
        f"Milliseconds, forward and with backward: {record['source']}.",
        f"\n{LENGTHS[0]} tokens{'GDN-2':>18}{'CARVE':>16}   of it its forward scan",
    ]
    for heads, rules in record["rules"].items():
        gdn2, carve = (f"{of['forward']:.2f}, {of['both']:.2f}" for of in rules.values())
        lines += [f"B·H {heads:>4}{gdn2:>21}{carve:>16}{rules['carve']['scans']:>8.2f}"]
    lines += [
        "\nGDN-2 now, and how many times as fast in the best power of two (in brackets:",
        "beside a scan whose value channels are not spread), and in the number that 0 chooses",
        f"{'now':>29}{'best forward':>25}{'best with backward':>21}   chosen",
    ]
    for row in record["stretches"]:
        now, unspread, chosen = row["now"], row["unspread"], row["chosen"]
        cells = "".join(
            f"{row[which]['stretches']:>5}: {now[which] / row[which][which]:.2f} "
            f"({unspread[which] / row[which][which]:.2f})".ljust(19)
            for which in ("forward", "both")
        )
        gains = ", ".join(f"{now[which] / chosen[which]:.2f}" for which in ("forward", "both"))
        times = f"{now['forward']:.2f}, {now['both']:.2f}"
        lines += [
            f"B·H {row['heads']:>3} T {row['length']:>6}{times:>15}   {cells}"
            f"{chosen['stretches']:>5}: {gains}"
        ]
    return "\n".join(lines)


def few_heads() -> dict[str, Any]:
    """The record: both rules by B·H, and GDN-2 in stretches by B·H and T."""
    rules = {
        heads: {rule: predicted(rule, heads, LENGTHS[0])._asdict() for rule in ("gdn2", "carve")}
        for heads in ALL_HEADS
    }
    stretches = [
        {
            "heads": heads,
            "length": length,
            "now": predicted("gdn2", heads, length)._asdict(),
            "unspread": predicted("gdn2", heads, length, spread=False)._asdict(),
            "forward": best(heads, length, both=False)._asdict(),
            "both": best(heads, length, both=True)._asdict(),
            "chosen": predicted("gdn2", heads, length, 0)._asdict(),
        }
        for length in LENGTHS
        for heads in HEADS
    ]
    return {"source": SOURCE, "rules": rules, "stretches": stretches}
