"""Lowers programs for a GPU that need not be there, and finds the kernels in them."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax._src.lib.triton import dialect  # Pallas's own; no public module has the Triton dialect
from jax.extend.mlir import ir

from pallas_kernels.compiling.chips import CHIPS


class Lowerable(Protocol):
    """A JAX function and arguments to lower it for (`catalogue.Program` is one)."""

    @property
    def function(self) -> Any:
        """Takes `arguments`, positional."""

    @property
    def arguments(self) -> Sequence[Any]:
        """`jax.ShapeDtypeStruct`s, or pytrees of them."""


class Kernel(NamedTuple):
    """One Pallas kernel as lowered: Triton IR as text, and its launch options."""

    name: str
    ir_text: str
    num_warps: int
    num_stages: int
    grid: tuple[int, int, int] = (1, 1, 1)


def lower(program: Lowerable, arch: str, sharding: Any = None) -> jax.stages.Lowered:
    """Lowers a program for a GPU that need not be there; raises whatever the lowering raises.

    Args:
      program: what to lower.
      arch: a key of `CHIPS`.
      sharding: of every argument, where the program will be compiled as well.
    """
    device = jax.sharding.AbstractDevice(
        device_kind=CHIPS[arch].device_kind, num_cores=None, platform="gpu"
    )
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    arguments = program.arguments
    if sharding is not None:
        arguments = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments
        )
    with jax.sharding.use_abstract_mesh(mesh), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")
        traced = jax.jit(program.function).trace(*arguments)
        return traced.lower(lowering_platforms=("cuda",))


def extract_kernels(lowered: jax.stages.Lowered) -> list[Kernel]:
    """The Pallas-Triton kernels of a lowered program, in order; equal ones once.

    Different kernels of one name become `name`, `name#2`, …. Raises as `extract_calls` does.
    """
    return numbered(dict.fromkeys(extract_calls(lowered)))


def numbered(kernels: Any) -> list[Any]:
    """Named tuples whose repeated names become `name#2`, `name#3`, …."""
    seen: Counter[str] = Counter()
    named = []
    for kernel in kernels:
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
        x, y, z = (ir.IntegerAttr(config[f"grid_{axis}"]).value for axis in "xyz")
        kernels.append(
            Kernel(
                ir.StringAttr(config["name"]).value,
                _as_text(ir.StringAttr(config["ir"]).value_bytes),
                ir.IntegerAttr(config["num_warps"]).value,
                ir.IntegerAttr(config["num_stages"]).value,
                (x, y, z),
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


_CONSTANT = re.compile(r"(%\S+) = arith\.constant (-?\d+) : i\d+")
_SUM = re.compile(r"(%\S+) = arith\.(addi|subi|muli) (%[^\s,]+), (%[^\s,]+) : i\d+")
_LOAD = re.compile(r"(%\S+) = tt\.load .*: !tt\.ptr<i32>$")
_FOR = re.compile(r"scf\.for %\S+ = (%[^\s,]+) to (%[^\s,]+) step (%[^\s,]+) ")


def loop_trips(ir_text: str) -> list[int]:
    """How often the loops of a kernel in Triton IR run, those whose bounds are constants or plus a
    number that is loaded: our kernels load none but the zero of `wy.order`."""
    known: dict[str, int] = {}
    found = []
    for line in ir_text.splitlines():
        if constant := _CONSTANT.search(line):
            known[constant[1]] = int(constant[2])
        elif loaded := _LOAD.search(line):
            known[loaded[1]] = 0
        elif (total := _SUM.search(line)) and total[3] in known and total[4] in known:
            a, b = known[total[3]], known[total[4]]
            known[total[1]] = {"addi": a + b, "subi": a - b, "muli": a * b}[total[2]]
        elif loop := _FOR.search(line):
            bounds = [known[name] for name in loop.groups() if name in known]
            if len(bounds) == 3:
                low, high, step = bounds
                found.append(max(0, -(-(high - low) // step)))
    return found
