"""From PTX to machine code and what it says of itself: ptxas and nvdisasm, as pip installs them."""

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pallas_kernels.compiling import sass

HINT = "pip install -e '.[aot]' (it brings XLA for a GPU, ptxas and nvdisasm)"


@dataclass(frozen=True)
class Assembled:
    """One kernel as assembled.

    Attributes:
      registers: 32-bit registers per thread (255 at most).
      stack_bytes: local-memory frame of a thread; spilled values and indexed arrays live there.
      spill_bytes: bytes that spilling stores and loads per thread, counted once per instruction.
      code: its instructions.
    """

    registers: int
    stack_bytes: int
    spill_bytes: int
    code: tuple[sass.Instruction, ...]


@functools.cache
def tool(name: str) -> str:
    """Path of one of NVIDIA's tools.

    Raises:
      FileNotFoundError: it is not installed.
    """
    found = next(_installed(name), None) or shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: {HINT}")
    return found


def _installed(name: str) -> Iterator[str]:
    """Where pip's packages of NVIDIA, and of Triton, keep a tool."""
    for package, pattern in (("nvidia", "cu*/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            yield from map(str, sorted(Path(root).glob(f"{pattern}/{name}")))


def version() -> str:
    """The version that ptxas reports, such as `13.5.37`."""
    said = subprocess.run(
        [tool("ptxas"), "--version"], capture_output=True, encoding="utf-8"
    ).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", said)
    return found[1] if found else "unknown"


def assemble(ptx: str) -> dict[str, Assembled]:
    """The kernels of a PTX module, by name, for the chip it is written for.

    Raises:
      RuntimeError: ptxas or nvdisasm refused it.
    """
    arch = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    if arch is None:
        raise RuntimeError("the PTX names no target")
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        log = _run("ptxas", "-v", "-arch", arch[1], str(source), "-o", str(cubin))
        return _collect(log, disassemble(cubin))


def disassemble(cubin: Path) -> dict[str, list[sass.Instruction]]:
    """The instructions of a cubin's kernels, by name. Raises as `assemble` does."""
    return sass.parse(_run("nvdisasm", "-c", str(cubin)))


def _collect(log: str, codes: dict[str, list[sass.Instruction]]) -> dict[str, Assembled]:
    found = {}
    for section in log.split("Compiling entry function ")[1:]:
        name = section.partition("'")[2].partition("'")[0]
        frame = re.search(
            rf"Function properties for {re.escape(name)}\s+(\d+) bytes stack frame, "
            r"(\d+) bytes spill stores, (\d+) bytes spill loads",
            section,
        )
        registers = re.search(r"Used (\d+) registers", section)
        if frame is None or registers is None:
            raise RuntimeError(f"ptxas reported no registers and stack for {name}: {section!r}")
        stack, stores, loads = map(int, frame.groups())
        code = tuple(codes[name])
        found[name] = Assembled(int(registers[1]), stack, stores + loads, code)
    return found


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run([tool(name), *arguments], capture_output=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{name}: {' '.join((done.stderr or done.stdout).split())[:300]}")
    return done.stdout + done.stderr
