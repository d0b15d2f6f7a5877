"""Compiles every shipped kernel for GPUs that need not be present, and reports what each one takes.

    python -m pallas_kernels.aot --arch=sm_90,sm_80 --output=aot.json
    python -m pallas_kernels.aot --check        # for CI: exits 1 when a kernel got worse
    python -m pallas_kernels.aot --record       # accepts today's stack and spills as the limit

Needs the `triton` package, no GPU. `--check` fails, naming each kernel, when one does not compile,
needs more shared memory than the chip has, or takes more stack or spills than was recorded for it
in `compiling/limits.json`.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax._src.lib.triton import dialect  # Pallas's own; no public module has the Triton dialect
from jax.extend.mlir import ir

from pallas_kernels.compiling import catalogue
from pallas_kernels.compiling.catalogue import Program, TritonProgram
from pallas_kernels.compiling.pip_triton import (
    Request,
    Resources,
    TritonFunction,
    compile_all,
    summary,
)

LIMITS = Path(__file__).parent / "compiling" / "limits.json"
USER_ERROR = 2


class Chip(NamedTuple):
    """What a kernel is lowered for, and the most a block can ask for.

    Shared memory a block, after opting in: CUDA C++ Programming Guide, "Technical Specifications
    per Compute Capability" (227 KB on sm_90 and sm_100, 163 KB on sm_80).
    """

    device_kind: str
    capability: float
    shared_bytes: int
    tensor_memory_columns: int


CHIPS = {
    "sm_80": Chip("NVIDIA A100", 8.0, 163 * 1024, 0),
    "sm_90": Chip("NVIDIA H100", 9.0, 227 * 1024, 0),
    "sm_100": Chip("NVIDIA B200", 10.0, 227 * 1024, 512),
}


class Kernel(NamedTuple):
    """One Pallas kernel as lowered: Triton IR as text, and its launch options."""

    name: str
    ir_text: str
    num_warps: int
    num_stages: int


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


def lower(program: Program, arch: str) -> jax.stages.Lowered:
    """Lowers a program for a GPU that need not be there; raises whatever the lowering raises."""
    kind = CHIPS[arch].device_kind
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")
        traced = jax.jit(program.function).trace(*program.arguments)
        return traced.lower(lowering_platforms=("cuda",))


def extract_kernels(lowered: jax.stages.Lowered) -> list[Kernel]:
    """The Pallas-Triton kernels of a lowered program, in order; equal ones once.

    Different kernels of one name become `name`, `name#2`, …. Raises as `extract_calls` does.
    """
    seen: Counter[str] = Counter()
    named = []
    for kernel in dict.fromkeys(extract_calls(lowered)):
        seen[kernel.name] += 1
        count = seen[kernel.name]
        named.append(kernel._replace(name=f"{kernel.name}#{count}") if count > 1 else kernel)
    return named


def extract_calls(lowered: jax.stages.Lowered) -> list[Kernel]:
    """The kernel of every Pallas-Triton call written in a lowered program, in order; calls that
    stand in one function (JAX 0.12 shares equal ones) are written once.

    Raises:
      ValueError: a Triton custom call that carries no Triton IR (one of `jax_triton`, or of a JAX
        release that lays it out otherwise).
    """
    kernels: list[Kernel] = []
    module: Any = lowered.compiler_ir("stablehlo")
    for call in _triton_calls(module.operation):
        config: Any = {}
        if "mhlo.backend_config" in call.attributes:
            config = ir.DictAttr(call.attributes["mhlo.backend_config"])
        if "ir" not in config:
            raise ValueError(
                f"the custom call {_target(call)} holds no Triton IR; "
                "list a kernel of jax_triton as a TritonProgram, and use JAX 0.10 to 0.12"
            )
        kernels.append(
            Kernel(
                ir.StringAttr(config["name"]).value,
                _as_text(ir.StringAttr(config["ir"]).value_bytes),
                ir.IntegerAttr(config["num_warps"]).value,
                ir.IntegerAttr(config["num_stages"]).value,
            )
        )
    return kernels


def _triton_calls(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region:
            for inner in block:
                if "triton" in _target(inner.operation):
                    yield inner.operation
                yield from _triton_calls(inner.operation)


def _target(operation: Any) -> str:
    """What a custom call calls; empty for other operations."""
    if operation.name != "stablehlo.custom_call":
        return ""
    return ir.StringAttr(operation.attributes["call_target_name"]).value


def _as_text(bytecode: bytes) -> str:
    # Text, since MLIR bytecode is tied to the version that wrote it and Triton brings another one.
    context = ir.Context()
    dialect.register_dialect(context)
    return str(ir.Module.parse(bytecode, context))


def report(
    programs: Sequence[Program | TritonProgram], arch: str, workers: int | None = None
) -> list[Row]:
    """Compiles the kernels of all programs for one chip: a row a kernel, in the programs' order.

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

    `recorded` is `compiling/limits.json`: the Triton version, and by kernel the bytes of stack and of
    spills.
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
    """The report as aligned text, a line a kernel."""
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
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        " ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
    ]
    return "\n".join(line.rstrip() for line in padded)


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The report as one JSON object: versions, and a flat object a kernel."""
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


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
      argv: the arguments, without the program's name.

    Returns:
      0; 1 when `--check` or `--record` met a kernel that fails; 2 for a mistake in the arguments.
    """
    flags = _parse(argv)
    archs = list(dict.fromkeys(flags.arch.split(",")))
    if unknown := [arch for arch in archs if arch not in CHIPS]:
        return _fail(f"--arch={unknown[0]} is not known; choose from {', '.join(CHIPS)}")
    if importlib.util.find_spec("triton") is None:
        return _fail("the triton package is not installed: run pip install -e '.[dev]'")
    rows = []
    for arch in archs:
        shipped = catalogue.programs(CHIPS[arch].device_kind, CHIPS[arch].capability)
        programs = [p for p in shipped if flags.programs in p.name]
        if not programs:
            known = ", ".join(sorted({p.name for p in shipped}))
            return _fail(f"no program's name contains {flags.programs!r}; there are: {known}")
        print(f"{arch}: {len(programs)} programs", file=sys.stderr, flush=True)
        rows += report(programs, arch, flags.workers)
    print(table(rows))
    if flags.output:
        try:
            Path(flags.output).write_text(json.dumps(as_json(rows), indent=1) + "\n")
        except OSError as error:
            return _fail(f"--output={flags.output} cannot be written: {error.strerror}")
    return _judge(rows, flags)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--arch", default="sm_90", help=f"comma-separated, from {', '.join(CHIPS)}")
    parser.add_argument("--programs", default="", help="only programs whose name contains this")
    parser.add_argument("--output", help="write the report to this file, as JSON")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="compiler processes")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="exit 1 if a kernel got worse")
    choice.add_argument("--record", action="store_true", help="write the limits for --check")
    return parser.parse_args(argv)


def _judge(rows: Sequence[Row], flags: argparse.Namespace) -> int:
    """Says what fails, does what `--check` or `--record` asks, and returns the exit code."""
    recorded = json.loads(LIMITS.read_text()) if LIMITS.exists() else {}
    failures = hardware_failures(rows)
    if flags.check:
        failures += limit_failures(rows, recorded)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        return 1 if flags.check or flags.record else 0
    if flags.record:
        limits = record(rows, recorded, keep_others=bool(flags.programs))
        LIMITS.write_text(json.dumps(limits, indent=1) + "\n")
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # kernels are lowered for a chip, not run on one
    sys.exit(main(sys.argv[1:]))
