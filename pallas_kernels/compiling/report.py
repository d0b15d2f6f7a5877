"""Kernels as pip's Triton compiles them: one row each, held against chips and recorded limits."""

import dataclasses
import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pallas_kernels.compiling.catalogue import Program, TritonProgram
from pallas_kernels.compiling.chips import CHIPS
from pallas_kernels.compiling.counts import align
from pallas_kernels.compiling.lowering import extract_kernels, lower
from pallas_kernels.compiling.pip_triton import (
    Request,
    Resources,
    TritonFunction,
    compile_all,
    summary,
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel in the report. `outcome` is what it takes or, in one line, why there is none."""

    arch: str
    program: str
    kernel: str
    tile: str
    dtype: str
    num_warps: int
    num_stages: int
    outcome: Resources | str

    @property
    def key(self) -> str:
        """The row's name in the recorded limits."""
        return f"{self.arch}/{self.program}/{self.kernel}/{self.tile}/{self.dtype}"


def report(
    programs: Sequence[Program | TritonProgram], arch: str, workers: int | None = None
) -> list[Row]:
    """Compiles the kernels of all programs for one chip: one row for each, in the programs' order.

    A program that cannot be lowered, or that holds no kernel, has one row that says so, with `-`
    for the kernel.

    Raises:
      ValueError: two programs share name, tile and dtype.
    """
    labels = Counter((program.name, program.tile_label, program.dtype) for program in programs)
    if twice := [label for label, count in labels.items() if count > 1]:
        raise ValueError(f"the catalogue holds more than one program called {twice}; rename one")
    wanted: list[tuple[Program | TritonProgram, str, Request | str]] = []
    for program in programs:
        wanted.extend((program, name, request) for name, request in _requests(program, arch))
    outcomes = compile_all([r for _, _, r in wanted if isinstance(r, Request)], workers)
    return [
        Row(
            arch,
            program.name,
            kernel,
            program.tile_label,
            program.dtype,
            getattr(request, "num_warps", 0),
            getattr(request, "num_stages", 0),
            request if isinstance(request, str) else outcomes[request],
        )
        for program, kernel, request in wanted
    ]


def _requests(program: Program | TritonProgram, arch: str) -> list[tuple[str, Request | str]]:
    """What to compile for a program, by kernel name, or why there is nothing to compile."""
    if isinstance(program, TritonProgram):
        types, values = tuple(program.signature.items()), tuple(program.constexprs.items())
        source = TritonFunction(program.kernel, types, values)
        name = program.kernel.partition(":")[2]
        return [(name, Request(source, program.num_warps, program.num_stages, arch))]
    try:
        kernels = extract_kernels(lower(program, arch))
    except Exception as error:  # reported beside the others, and --check fails on it
        return [("-", f"does not lower: {summary(error)}")]
    if not kernels:
        return [("-", "lowers to no Triton kernel at all")]
    return [(k.name, Request(k.ir_text, k.num_warps, k.num_stages, arch)) for k in kernels]


def hardware_failures(rows: Sequence[Row]) -> list[str]:
    """One sentence for each kernel that does not compile or does not fit its chip."""
    failures = []
    for row in rows:
        chip, taken = CHIPS[row.arch], row.outcome
        if isinstance(taken, str):
            failures.append(f"{row.key}: {taken}")
            continue
        if taken.shared_bytes > chip.shared_bytes:
            failures.append(
                f"{row.key}: needs {taken.shared_bytes} bytes of shared memory, "
                f"a block on {row.arch} has {chip.shared_bytes}"
            )
        if taken.tensor_memory_columns > chip.tensor_memory_columns:
            failures.append(
                f"{row.key}: needs {taken.tensor_memory_columns} columns of tensor memory, "
                f"a block on {row.arch} has {chip.tensor_memory_columns}"
            )
    return failures


def limit_failures(rows: Sequence[Row], recorded: Mapping[str, Any]) -> list[str]:
    """One sentence for each compiled kernel that exceeds, or lacks, its record.

    `recorded` is `compiling/limits.json`: the Triton version, and by kernel the bytes of stack and
    of spills.
    """
    failures = []
    limits = recorded.get("kernels", {})
    for row in rows:
        if isinstance(row.outcome, str):
            continue
        if row.key not in limits:
            failures.append(f"{row.key}: no limit is recorded; look at it, then run with --record")
            continue
        for what, bytes_now in _limited(row.outcome).items():
            if bytes_now > limits[row.key][what]:
                failures.append(
                    f"{row.key}: {bytes_now} bytes of {what}, recorded {limits[row.key][what]} "
                    f"(with Triton {recorded.get('triton')}; this is {_version('triton')})"
                )
    return failures


def _limited(taken: Resources) -> dict[str, int]:
    return {"stack": taken.stack_bytes, "spills": taken.spill_bytes}


def record(rows: Sequence[Row], recorded: Mapping[str, Any], keep_others: bool) -> dict[str, Any]:
    """The limits with these rows' figures put in.

    Records of kernels that were not compiled now are kept when `keep_others`; otherwise only those
    of other chips are.
    """
    archs = {row.arch for row in rows}
    kernels = {
        key: limit
        for key, limit in recorded.get("kernels", {}).items()
        if keep_others or key.partition("/")[0] not in archs
    }
    kernels |= {row.key: _limited(row.outcome) for row in rows if not isinstance(row.outcome, str)}
    return {"triton": _version("triton"), "kernels": dict(sorted(kernels.items()))}


def table(rows: Sequence[Row]) -> str:
    """The report as aligned text, one line per kernel."""
    head = (
        "arch program kernel tile dtype warps stages regs stack spills shared tensor-core seconds"
    )
    lines = [head.split()]
    for row in rows:
        cells = [row.arch, row.program, row.kernel, row.tile, row.dtype]
        cells += [str(row.num_warps), str(row.num_stages)]
        taken = row.outcome
        if isinstance(taken, str):
            lines.append([*cells, "FAILED", "", "", "", "", ""])
            continue
        numbers = (taken.registers, taken.stack_bytes, taken.spill_bytes, taken.shared_bytes)
        wgmma = "wgmma_serialized" if taken.wgmma_serialized else "wgmma"
        families = {wgmma: taken.wgmma, "mma": taken.mma_sync, "tcgen05": taken.tcgen05}
        tensor = "+".join(f"{n}_{family}" for family, n in families.items() if n) or "0"
        lines.append([*cells, *map(str, numbers), tensor, f"{taken.seconds:.1f}"])
    return align(lines)


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The report as one JSON object: versions, and one flat object per kernel."""
    kernels = []
    for row in rows:
        entry = dataclasses.asdict(row)
        del entry["outcome"]
        if isinstance(row.outcome, str):
            entry["error"] = row.outcome
        else:
            entry |= dataclasses.asdict(row.outcome)
            entry["tensor_core_instructions"] = row.outcome.tensor_core_instructions
        kernels.append(entry)
    return {"jax": jax.__version__, "triton": _version("triton"), "kernels": kernels}


def _version(package: str) -> str:
    return importlib.metadata.version(package)
