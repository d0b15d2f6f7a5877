"""Predicts a kernel's time from its machine code, by a small model calibrated on measured kernels.

A warp takes so many cycles, whatever the other warps of its SM do (at 8 warps an SM, which is what
was measured, none of them often waits for another to issue):

    cycles = 4.4 × instructions + 26 × (barriers + tensor-core instructions) + 32 × spilled words

The blocks that fit an SM hide each other's cycles up to `MOST_ISSUED` instructions per cycle. A
grid takes whole waves, so that 128 programs that scan the sequence take one program's time and
leave 4 of an H100's 132 SMs idle. Memory takes the bytes of every array, each counted once, at the
rate of a copy. Both go on side by side, but not without holding each other up: t^1.5 = t_code^1.5 +
t_bytes^1.5. `calibration.json` has the kernels of commit dca1c53 as counted here and as Nsight
Compute measured them: over these twelve the model is off by 9% (root mean square) and by 22% at
most, in a scan that reads but a part of its arrays; by 10% for a kernel that it was not fitted to.
All of them had 8 warps per SM. `python -m pallas_kernels.aot --calibration` prints the table.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pallas_kernels.compiling.chips import Chip

CALIBRATION = Path(__file__).with_name("calibration.json")
CYCLES, WAIT_CYCLES, SPILL_CYCLES = 4.4, 26.0, 32.0
WAITS, SPILLS = ("barrier", "tensor"), ("spill",)
POWER = 1.5
MOST_ISSUED = 2.0  # of 4 per cycle; no kernel here was measured above 1.5
REGISTERS, REGISTER_UNIT = 1 << 16, 256  # of an SM, and what a warp's are rounded up to
BLOCK_RESERVED = 1024  # bytes of shared memory that the driver takes of each block


class Occupancy(NamedTuple):
    """Blocks that fit an SM at once, and what allows no more."""

    blocks: int
    limit: str


class Prediction(NamedTuple):
    """What a kernel will take, in milliseconds.

    Attributes:
      ipc: instructions that an SM with work issues per cycle, all told.
      code_ms: its instructions alone.
      bytes_ms: the floor of its bytes.
      total_ms: both.
    """

    ipc: float
    code_ms: float
    bytes_ms: float
    total_ms: float

    @property
    def bound(self) -> str:
        """Which of the two takes longer."""
        return "code" if self.code_ms > self.bytes_ms else "bytes"


def occupancy(registers: int, warps: int, shared_bytes: int, chip: Chip) -> Occupancy:
    """How many blocks of `warps` warps fit an SM.

    Args:
      registers: per thread.
      warps: per block.
      shared_bytes: per block, without what the driver takes.
      chip: whose SM.
    """
    warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    limits = {
        "registers": REGISTERS // warp // 4 * 4 // warps,
        "shared": chip.shared_bytes_sm // (shared_bytes + BLOCK_RESERVED),
        "warps": chip.warps // warps,
        "blocks": chip.blocks,
    }
    limit = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[limit], limit)


def warp_cycles(executed: Mapping[str, int]) -> float:
    """Cycles that a warp takes, from what it executes by category."""
    waits, spills = (sum(executed.get(c, 0) for c in group) for group in (WAITS, SPILLS))
    total = sum(executed.values())
    return CYCLES * total + WAIT_CYCLES * waits + SPILL_CYCLES * spills


def predict(
    executed: Mapping[str, int],
    warps: int,
    programs: int,
    blocks: int,
    moved_bytes: int,
    chip: Chip,
) -> Prediction:
    """A kernel's time on a chip.

    Args:
      executed: instructions of a warp by category.
      warps: of a block.
      programs: blocks of the grid.
      blocks: that fit an SM.
      moved_bytes: read and written.
      chip: the H100 is the one the model is calibrated for.
    """
    resident = max(1, min(blocks, -(-programs // chip.multiprocessors)))
    instructions = warps * sum(executed.values())
    # A wave of resident blocks: a warp's own time, or what an SM issues at most.
    wave = max(warp_cycles(executed), resident * instructions / MOST_ISSUED)
    waves = math.ceil(programs / (chip.multiprocessors * resident))
    code = wave * waves / chip.gigahertz / 1e6
    moved = moved_bytes / chip.bytes_per_second * 1e3
    total = together(code, moved)
    per_multiprocessor = instructions * programs / min(programs, chip.multiprocessors)
    return Prediction(per_multiprocessor / (total * chip.gigahertz * 1e6), code, moved, total)


def together(code: float, moved: float) -> float:
    """The time of a kernel whose instructions and bytes take these times by themselves."""
    return float((code**POWER + moved**POWER) ** (1 / POWER))


class Measured(NamedTuple):
    """One kernel of the calibration, as predicted and as measured."""

    program: str
    phase: str
    kernel: str
    prediction: Prediction
    counted_instructions: int
    instructions: int
    ipc: float
    milliseconds: float

    @property
    def error(self) -> float:
        """Error of the predicted time, as a share of the measured time."""
        return self.prediction.total_ms / self.milliseconds - 1

    @property
    def count_error(self) -> float:
        """Error of the counted instructions, as a share of those executed."""
        return self.counted_instructions / self.instructions - 1


def calibration(chip: Chip, path: Path = CALIBRATION) -> list[Measured]:
    """The measured kernels, predicted from what was counted of them."""
    return [_measured(row, chip) for row in json.loads(path.read_text(encoding="utf-8"))["kernels"]]


def _measured(row: Mapping[str, Any], chip: Chip) -> Measured:
    counted, measured = row["counted"], row["measured"]
    fit = occupancy(counted["registers"], counted["warps"], counted["shared"], chip)
    return Measured(
        program=row["program"],
        phase=row["phase"],
        kernel=row["kernel"],
        prediction=predict(
            counted["executed"],
            counted["warps"],
            counted["programs"],
            fit.blocks,
            counted["moved_bytes"],
            chip,
        ),
        counted_instructions=(
            counted["warps"] * counted["programs"] * sum(counted["executed"].values())
        ),
        instructions=measured["instructions"],
        ipc=measured["ipc"],
        milliseconds=measured["microseconds"] / 1e3,
    )
