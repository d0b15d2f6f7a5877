"""What each kernel executes as XLA compiles it, and the time that predicts: one row per kernel."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pallas_kernels.compiling import sass, xla
from pallas_kernels.compiling.catalogue import Program
from pallas_kernels.compiling.chips import CHIPS
from pallas_kernels.compiling.lowering import Kernel, loop_trips
from pallas_kernels.compiling.pip_triton import Request, compile_all, summary
from pallas_kernels.compiling.predict import (
    Occupancy,
    Prediction,
    calibration,
    occupancy,
    predict,
)


@dataclass(frozen=True)
class Count:
    """One kernel of a program.

    Attributes:
      arch, program, tile, dtype: what was compiled.
      phase: "forward" or "backward".
      kernel: its name; `name#2`, … where a phase launches several of one name.
      warps: of a block.
      registers: per thread.
      stack_bytes, spill_bytes: per thread, as ptxas reports them.
      shared_bytes: per block.
      occupancy: blocks on an SM.
      programs: blocks of a launch.
      launches: of the kernel in the whole call, one for each part of the sequence.
      executed: instructions of one warp by category.
      per_span: warp instructions for 64 tokens of a head; None where that means nothing.
      loops: how often each loop runs, an entry.
      prediction: of all launches together.
      lowered: the kernel before XLA compiled it.
    """

    arch: str
    program: str
    tile: str
    dtype: str
    phase: str
    kernel: str
    warps: int
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    occupancy: Occupancy
    programs: int
    launches: int
    executed: dict[str, int]
    per_span: int | None
    loops: tuple[float, ...]
    prediction: Prediction
    lowered: Kernel

    @property
    def key(self) -> str:
        """The row's name in the record."""
        return f"{self.program}/{self.tile}/{self.dtype}/{self.phase}/{self.kernel}"

    @property
    def instructions(self) -> int:
        """Warp instructions of a program."""
        return self.warps * sum(self.executed.values())


@dataclass(frozen=True)
class Step:
    """What XLA does itself between the kernels: a fusion, say. Its time is that of its bytes."""

    program: str
    phase: str
    name: str
    moved_bytes: int


@dataclass(frozen=True)
class Counted:
    """What became of a program: its kernels and other steps, or in one line why there are none."""

    program: str
    kernels: tuple[Count, ...] = ()
    steps: tuple[Step, ...] = ()
    error: str = ""


def count(program: Program, arch: str) -> Counted:
    """Compiles a program with XLA and counts what its kernels execute."""
    try:
        launches = xla.compile_program(program, arch)
        kernels = _counts(program, arch, [x for x in launches if x.ours])
    except Exception as error:  # reported beside the others, and --check fails on it
        return Counted(program.label, error=summary(error))
    steps = tuple(
        Step(program.name, x.phase, x.name, program.repeats * (x.read_bytes + x.written_bytes))
        for x in launches
        if not x.ours
    )
    if not kernels:
        return Counted(program.label, error="holds no Pallas kernel at all")
    return Counted(program.label, tuple(kernels), steps)


def _counts(program: Program, arch: str, launches: Sequence[xla.Launch]) -> list[Count]:
    chip, seen, rows = CHIPS[arch], Counter[tuple[str, str]](), []
    for launch in launches:
        taken = launch.assembled
        try:
            run = sass.execute(taken.code)
            assert launch.lowered is not None
            check_loops(run.loops, loop_trips(launch.lowered.ir_text))
        except sass.CountError as error:
            raise sass.CountError(f"{launch.name}: {error}") from error
        seen[launch.phase, launch.name] += 1
        number = seen[launch.phase, launch.name]
        fit = occupancy(taken.registers, launch.warps, launch.shared_bytes, chip)
        moved = launch.read_bytes + launch.written_bytes
        once = predict(
            run.instructions, launch.warps, launch.programs, max(1, fit.blocks), moved, chip
        )
        repeats = program.repeats
        total = launch.warps * run.total * launch.programs * repeats
        rows.append(
            Count(
                arch=arch,
                program=program.name,
                tile=program.tile_label,
                dtype=program.dtype,
                phase=launch.phase or "forward",
                kernel=launch.name + (f"#{number}" if number > 1 else ""),
                warps=launch.warps,
                registers=taken.registers,
                stack_bytes=taken.stack_bytes,
                spill_bytes=taken.spill_bytes,
                shared_bytes=launch.shared_bytes,
                occupancy=fit,
                programs=launch.programs,
                launches=repeats,
                executed=dict(run.instructions.most_common()),
                per_span=round(total / program.spans) if program.spans else None,
                loops=tuple(loop.trips for loop in run.loops),
                prediction=Prediction(once.ipc, *(repeats * ms for ms in once[1:])),
                lowered=launch.lowered,
            )
        )
    return sorted(rows, key=lambda row: row.phase != "forward")


MOST_PEELED = 4  # iterations that pipelining may move out of a loop


def check_loops(loops: Sequence[sass.Loop], expected: Collection[int]) -> None:
    """Holds the loops as executed against those written.

    Raises:
      CountError: one runs a number of times that no loop written explains, not even unrolled or
        with iterations moved out of it.
    """
    for loop in loops:
        explained = any(
            trips - MOST_PEELED <= factor * loop.trips <= trips
            for trips in expected
            for factor in (1, 2, 4, 8, 16)
        )
        if not explained:
            raise sass.CountError(
                f"the loop from {loop.first:#x} to {loop.last:#x} was found to run {loop.trips:g} "
                f"times, and those written run {sorted(expected)} times"
            )


def table(rows: Sequence[Counted]) -> str:
    """The kernels as aligned text, one line each, and one line of sums per program."""
    head = "program tile dtype phase kernel warps regs spills shared blocks/SM grid instructions"
    head += " for_64_tokens IPC code_ms bytes_ms predicted_ms bound"
    lines = [head.split()]
    for found in rows:
        lines += [_cells(row) for row in found.kernels]
        lines += [_sum(found, phase) for phase in dict.fromkeys(r.phase for r in found.kernels)]
        if found.error:
            name, tile, dtype = found.program.split("/")
            lines.append([name, tile, dtype, "FAILED", *[""] * 14])
    return align(lines)


def _cells(row: Count) -> list[str]:
    p = row.prediction
    grid = str(row.programs) + (f"x{row.launches}" if row.launches > 1 else "")
    return [
        *(row.program, row.tile, row.dtype, row.phase, row.kernel),
        *map(str, (row.warps, row.registers, row.spill_bytes, row.shared_bytes)),
        f"{row.occupancy.blocks}({row.occupancy.limit})",
        *(grid, f"{row.instructions:,}"),
        "-" if row.per_span is None else f"{row.per_span:,}",
        *(f"{p.ipc:.2f}", f"{p.code_ms:.3f}", f"{p.bytes_ms:.3f}", f"{p.total_ms:.3f}", p.bound),
    ]


def _sum(found: Counted, phase: str) -> list[str]:
    rows = [row for row in found.kernels if row.phase == phase]
    spans = [row.per_span for row in rows if row.per_span is not None]
    sums = [
        sum(getattr(r.prediction, n) for r in rows) for n in ("code_ms", "bytes_ms", "total_ms")
    ]
    whole = f"{sum(spans):,}" if spans else "-"
    first = rows[0]
    return [
        *(first.program, first.tile, first.dtype, phase, "sum", *[""] * 7, whole, ""),
        *(f"{value:.3f}" for value in sums),
        "",
    ]


def compare(rows: Sequence[Counted], arch: str, workers: int | None) -> str:
    """Warp instructions per program of the same kernels, by XLA and by pip's Triton."""
    kernels = [row for found in rows for row in found.kernels]
    asked = [
        Request(k.ir_text, k.num_warps, k.num_stages, arch) for k in (r.lowered for r in kernels)
    ]
    others = compile_all(asked, workers)
    names = ["instructions", "registers", "spills", "shared"]
    head = ["program", "tile", "dtype", "phase", "kernel"]
    lines = [[*head, *(f"{who}_{what}" for what in names for who in ("xla", "triton")), "ratio"]]
    for row, request in zip(kernels, asked, strict=True):
        taken = others[request]
        own = (row.instructions, row.registers, row.spill_bytes, row.shared_bytes)
        cells, ratio = ["FAILED"] * 4, "-"
        if not isinstance(taken, str):
            total = row.warps * sum(taken.executed.values())
            found = (total, taken.registers, taken.spill_bytes, taken.shared_bytes)
            cells = [f"{n:,}" for n in found]
            ratio = f"{row.instructions / total:.2f}" if total else "-"
        both = [cell for pair in zip((f"{n:,}" for n in own), cells, strict=True) for cell in pair]
        lines.append([row.program, row.tile, row.dtype, row.phase, row.kernel, *both, ratio])
    return align(lines)


def calibration_table() -> str:
    """The kernels that were measured, as predicted."""
    head = "program phase kernel counted executed error ipc measured_ipc ms measured_ms error"
    lines = [head.split(" ")]
    for row in calibration(CHIPS["sm_90"]):
        lines.append(
            [
                *(row.program, row.phase, row.kernel),
                *(f"{row.counted_instructions:,}", f"{row.instructions:,}"),
                *(f"{row.count_error:+.1%}", f"{row.prediction.ipc:.2f}", f"{row.ipc:.2f}"),
                *(f"{row.prediction.total_ms:.3f}", f"{row.milliseconds:.3f}", f"{row.error:+.0%}"),
            ]
        )
    return align(lines)


def align(lines: Sequence[Sequence[str]]) -> str:
    """A table as text, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [" ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)) for x in lines]
    return "\n".join(line.rstrip() for line in padded)


def categories(rows: Sequence[Counted]) -> str:
    """What each kernel executes for a program, by category: warp instructions."""
    lines = []
    for row in (row for found in rows for row in found.kernels):
        parts = "  ".join(f"{kind} {row.warps * n:,}" for kind, n in row.executed.items())
        lines.append(f"{row.key}: {row.instructions:,}\n    {parts}")
    return "\n".join(lines)


def steps(rows: Sequence[Counted]) -> str:
    """What XLA does between the kernels, with the megabytes it moves in a whole call."""
    return "\n".join(
        f"{step.program} {step.phase or '-'} {step.name}: {step.moved_bytes / 1e6:,.1f} MB"
        for found in rows
        for step in found.steps
    )


def as_json(row: Count) -> dict[str, Any]:
    """A row as JSON keeps it."""
    p = row.prediction
    return {
        "warps": row.warps,
        "registers": row.registers,
        "spills": row.spill_bytes,
        "shared": row.shared_bytes,
        "blocks": row.occupancy.blocks,
        "limit": row.occupancy.limit,
        "programs": row.programs,
        "launches": row.launches,
        "instructions": row.instructions,
        "for_64_tokens": row.per_span,
        "code_ms": round(p.code_ms, 4),
        "bytes_ms": round(p.bytes_ms, 4),
        "predicted_ms": round(p.total_ms, 4),
        "bound": p.bound,
    }
