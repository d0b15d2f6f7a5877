"""Compiles Mosaic GPU kernels for a Hopper card that need not be there, and counts what they take.

XLA hands them to Mosaic GPU's own compiler, so that they are not among what `xla.py` reads: the PTX
comes from the compiler's dump, and goes through the same ptxas, nvdisasm and counts.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pallas_kernels.compiling import sass, toolchain, xla
from pallas_kernels.compiling.lowering import Lowerable, lower
from pallas_kernels.compiling.toolchain import Assembled

DUMP = {"MOSAIC_GPU_DUMP_PTX": "1"}
FOLDER = "MOSAIC_GPU_DUMP_TO"


class Taken(NamedTuple):
    """What a kernel takes.

    Attributes:
      assembled: its code, registers and spills.
      executed: instructions of one warp by category; empty where a loop's counter was spilled, so
        that the code does not tell. Warpgroups that do different work part at jumps that only the
        GPU knows: what is jumped over is counted, up to the first that ends.
    """

    assembled: Assembled
    executed: dict[str, int]


def compile_kernels(program: Lowerable, arch: str = "sm_90") -> dict[str, Taken]:
    """The Mosaic GPU kernels of a program, by name.

    Raises:
      RuntimeError: what XLA, ptxas or nvdisasm says.
    """
    lowered = lower(program, arch, xla._sharding(arch))
    with tempfile.TemporaryDirectory() as folder, _environment(DUMP | {FOLDER: folder}):
        with xla._uncached():
            lowered.compile()
        modules = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("*.ptx"))]
    found: dict[str, Taken] = {}
    for ptx in modules:
        for name, assembled in toolchain.assemble(ptx).items():
            try:
                executed = dict(sass.execute(assembled.code).instructions.most_common())
            except sass.CountError:
                executed = {}
            found[name] = Taken(assembled, executed)
    return found


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """With these environment variables, and afterwards as before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
