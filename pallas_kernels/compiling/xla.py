"""Compiles programs with XLA, the compiler that runs them, for a GPU that need not be there.

XLA takes the Triton IR of a Pallas kernel through passes of its own (one makes a transposed
operand's whole chain of elementwise work a second time), so that other builds of Triton say little
about the code that will run. It writes the PTX; ptxas and nvdisasm make machine code of it.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.compiling import toolchain
from pallas_kernels.compiling.chips import target_config
from pallas_kernels.compiling.lowering import Kernel, Lowerable, extract_calls, lower
from pallas_kernels.compiling.toolchain import HINT, Assembled

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


class Launch(NamedTuple):
    """One step of a compiled program: a kernel, and how it is launched.

    Attributes:
      name: the kernel's, as Pallas or XLA named it.
      phase: "forward" or "backward" of a differentiated program, else "".
      programs: blocks of the grid.
      warps: of a block.
      shared_bytes: dynamic shared memory of a block.
      read_bytes, written_bytes: of the arrays it reads and writes, each counted once.
      lowered: the kernel as Pallas handed it over; None for XLA's own steps.
      assembled: its code.
    """

    name: str
    phase: str
    programs: int
    warps: int
    shared_bytes: int
    read_bytes: int
    written_bytes: int
    lowered: Kernel | None
    assembled: Assembled

    @property
    def ours(self) -> bool:
        """A Pallas kernel; a step that XLA made itself otherwise."""
        return self.lowered is not None


def unsupported_reason() -> str | None:
    """Why nothing can be compiled with XLA here, or None."""
    if not any(importlib.util.find_spec(plugin) for plugin in PLUGINS):
        return f"XLA for a GPU is not installed: {HINT}"
    try:
        toolchain.tool("ptxas"), toolchain.tool("nvdisasm")
    except FileNotFoundError as error:
        return str(error)
    return None


def versions() -> dict[str, str]:
    """Versions of everything that decides the code."""
    plugin = next(p for p in PLUGINS if importlib.util.find_spec(p))
    return {
        "jax": jax.__version__,
        "xla": importlib.metadata.version(plugin),
        "ptxas": toolchain.version(),
    }


@functools.cache
def _sharding(arch: str) -> NamedSharding:
    topology: Any = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(arch), topology="1x1x1"
    )
    return NamedSharding(Mesh(np.array(topology.devices), ("x",)), PartitionSpec())


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Without JAX's cache: an executable that comes from there leaves nothing to read."""
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it asks once per process whether it is wanted
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def compile_program(program: Lowerable, arch: str) -> list[Launch]:
    """The steps of a program in the order of launch.

    Raises:
      RuntimeError: what XLA or ptxas says, or that XLA left out what is read here.
      Exception: whatever lowering raises.
    """
    lowered = lower(program, arch, _sharding(arch))
    with tempfile.TemporaryDirectory() as folder, _uncached():
        # The expression keeps XLA from writing what takes a minute per program.
        lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_emitter_re": "ptx"})
        dump = Path(folder)
        modules = [ptx.read_text(encoding="utf-8") for ptx in sorted(dump.glob("*.ptx"))]
        assembled: dict[str, Assembled] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for found in pool.map(toolchain.assemble, (m for m in modules if ".entry" in m)):
                assembled |= found
        steps = read_instructions(_dumped(dump, "*gpu_after_optimizations.txt"))
        names = read_annotations(_dumped(dump, "*.thunk_metadata.txt"))
        launches = read_launches(_dumped(dump, "*.thunk_sequence.txt"))
    ours = match_kernels(steps, extract_calls(lowered))
    return [
        _launch(launch, steps[names[launch.number]], ours.get(names[launch.number]), assembled)
        for launch in launches
    ]


def match_kernels(steps: Mapping[str, Any], kernels: Sequence[Kernel]) -> dict:
    """The kernel that Pallas handed to XLA, by instruction.

    XLA schedules anew and numbers its instructions in the order of the program.

    Raises:
      RuntimeError: there are more of one than of the other.
    """
    calls = [name for name, step in steps.items() if step.ours]
    calls.sort(key=lambda name: int(name.rpartition(".")[2]) if "." in name else -1)
    if len(calls) != len(kernels):
        raise RuntimeError(
            f"XLA launches {len(calls)} Pallas kernels, and the program was lowered to "
            f"{len(kernels)}; use JAX 0.11"
        )
    return dict(zip(calls, kernels, strict=True))


def _dumped(folder: Path, pattern: str) -> str:
    found = sorted(folder.glob(pattern))
    if not found:
        raise RuntimeError(
            f"XLA of JAX {jax.__version__} writes no {pattern}; use JAX 0.11, or --compiler=triton"
        )
    return found[-1].read_text(encoding="utf-8")


class Instruction(NamedTuple):
    """One instruction of an optimized module: its opcode, whether it is a Pallas kernel, where it
    comes from, its bytes."""

    opcode: str
    ours: bool
    origin: str
    read_bytes: int
    written_bytes: int


class Launched(NamedTuple):
    """A step as XLA lists it: number, kernel, blocks, threads and shared memory of a block."""

    number: int
    kernel: str
    programs: int
    threads: int
    shared_bytes: int


def read_launches(text: str) -> list[Launched]:
    """The kernels that XLA launches, in order."""
    line = re.compile(
        r"^\s*(\d+): kCustomKernel .*?\] (\S+) grid: \[([\d, ]+)\] threads: \[([\d, ]+)\]"
        r"\s+shared_memory: (\d+)",
        re.MULTILINE,
    )
    return [
        Launched(int(number), name, _product(grid), _product(threads), int(shared))
        for number, name, grid, threads, shared in line.findall(text)
    ]


def _product(sizes: str) -> int:
    return math.prod(int(size) for size in sizes.split(","))


def read_annotations(text: str) -> dict[int, str]:
    """The instruction behind each step, by the step's number."""
    found = re.findall(r'profile_annotation: "([^"]+)"\s+thunk_id: (\d+)', text)
    return {int(number): name for name, number in found}


_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (\([^)]*\)|\S+) ([\w-]+)\(([^)]*)\)(.*)$")


def read_instructions(text: str) -> dict[str, Instruction]:
    """The instructions of an optimized module's entry, by name."""
    sizes: dict[str, list[int]] = {}
    found = {}
    for line in text[text.index("\nENTRY ") :].splitlines():
        if not (match := _INSTRUCTION.match(line)):
            continue
        name, shapes, opcode, operands, rest = match.groups()
        sizes[name] = _bytes(shapes)
        read = re.findall(r"%([\w.-]+(?:#\d+)?)", operands)
        # An array that is only continued is not read.
        continued = re.findall(r"\{[\d, ]*\}: \((\d+), ", rest.partition(", metadata")[0])
        kept = {operand for i, operand in enumerate(read) if str(i) not in continued}
        origin = re.search(r'op_name="([^"]*)"', rest)
        read_bytes = sum(_operand_bytes(operand, sizes) for operand in kept)
        ours = opcode == "custom-call" and "triton" in rest.partition(", metadata")[0]
        found[name] = Instruction(
            opcode, ours, origin[1] if origin else "", read_bytes, sum(sizes[name])
        )
    return found


def _operand_bytes(operand: str, sizes: Mapping[str, Sequence[int]]) -> int:
    """Bytes of an array, or of one element of a tuple, as in `call#1`."""
    name, _, element = operand.partition("#")
    found = sizes.get(name, ())
    return found[int(element)] if element else sum(found)


def _bytes(shapes: str) -> list[int]:
    """Bytes of one array, or of each array in a tuple."""
    found = []
    for dtype, sizes in _SHAPE.findall(shapes):
        bits = 8 if dtype == "pred" else int(re.sub(r"^[a-z]+(\d+).*", r"\1", dtype))
        count = math.prod(int(size) for size in sizes.split(",") if size)
        found.append(count * max(bits, 8) // 8)
    return found


def _launch(
    launch: Launched, step: Instruction, kernel: Kernel | None, assembled: dict[str, Assembled]
) -> Launch:
    phase = "backward" if "transpose(" in step.origin else "forward"
    return Launch(
        name=launch.kernel if kernel is None else kernel.name,
        phase=phase if "jvp(" in step.origin else "",
        programs=launch.programs,
        warps=launch.threads // 32,
        shared_bytes=launch.shared_bytes,
        read_bytes=step.read_bytes,
        written_bytes=step.written_bytes,
        lowered=kernel,
        assembled=assembled[launch.kernel],
    )
