"""Every kernel program this package ships, with the shapes and tiles it is compiled for."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.blocks.decay import LOWEST_ANCHORED
from pallas_kernels.decode.step import decode_step
from pallas_kernels.decode.step_sizes import StepSizes, aot_signature, default_tiles
from pallas_kernels.tiling import Tiles, choose, holds_state
from pallas_kernels.triton.op import GateArrays, Inputs, make_plan, run
from pallas_kernels.triton.plan import Gate, Plan


@dataclass(frozen=True)
class Program:
    """A JAX function that holds Pallas kernels, and arguments to lower it for.

    Attributes:
      name: what the program computes, such as `carve_forward`.
      tile_label: the tile its kernels are built for, such as `c32w8s2`; shapes too where they vary.
      dtype: dtype of its inputs, as a label.
      function: takes `arguments` (positional) and runs at least one kernel.
      arguments: `jax.ShapeDtypeStruct`s, or pytrees of them.
      repeats: how often a call of the size meant runs the function, one part after another.
      spans: 64 tokens of a value head in such a call, all told; 0 for what has no sequence.
    """

    name: str
    tile_label: str
    dtype: str
    function: Callable[..., Any]
    arguments: Sequence[Any]
    repeats: int = 1
    spans: int = 0

    @property
    def label(self) -> str:
        """Name, tile and dtype."""
        return f"{self.name}/{self.tile_label}/{self.dtype}"


@dataclass(frozen=True)
class TritonProgram:
    """One official Triton kernel (`@triton.jit`), which is compiled without going through JAX.

    Attributes:
      name, tile_label, dtype: as in `Program`.
      kernel: where the kernel is defined, `package.module:function`, so that listing the catalogue
        needs no Triton.
      signature: Triton type of each runtime argument by name, such as `*bf16`, `fp32`, `i32`.
      constexprs: value of each compile-time argument by name.
      num_warps, num_stages: as at the call.
    """

    name: str
    tile_label: str
    dtype: str
    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3

    @property
    def label(self) -> str:
        """Name, tile and dtype."""
        return f"{self.name}/{self.tile_label}/{self.dtype}"


class Size(NamedTuple):
    """Sizes of a call: B, T, H, N and, under a content gate, L; by default the official ones."""

    batch: int = 8
    length: int = 4096
    heads: int = 16
    value_heads: int = 16
    gate_chunk: int = 64

    @property
    def label(self) -> str:
        """What differs from the official size, such as `L256`; empty if nothing does."""
        names = zip("BTHNL", self, Size(), strict=True)
        return "".join(f"{name}{own}" for name, own, usual in names if own != usual)


OFFICIAL = Size()
HEADS, RANK = 16, 16
WIDTHS = (64, 128, 256)
DTYPES = ("bfloat16", "float16", "float32")


def sequence_program(
    name: str, dtype: str, channels: int, width: int, tiles: Tiles, size: Size = OFFICIAL
) -> Program:
    """Forward and every gradient of one rule, K = channels, V = width.

    `name` is "gdn2", "gdn" (all gates per head), "gdn2_walk" (the inverse found on the way, as
    CARVE must), "gdn2_stretches" (scanned in `STRETCHES`) or "carve"; the ending "_bounded"
    promises g ≥ −10. The function is one part of the sequence, as a call of this size runs it part
    after part; what joins the parts is left out.
    """
    plan, length = planned(name, dtype, channels, width, tiles, size)
    part = size._replace(length=length // plan.parts)
    repeats, plan = plan.parts, plan._replace(parts=1)
    gated = plan.gate is not None
    inputs = _inputs(part, dtype, channels, width, gated, name == "gdn")
    memory = _of(size.batch, size.value_heads, width, channels)
    arrays = sums = None
    if gated:
        arrays, sums = _gate_arrays(part, channels, width)

    def train(inputs: Inputs, memory: Any, arrays: Any, cotangents: Any) -> Any:
        outputs, pull = jax.vjp(lambda *a: run(plan, *a), inputs, memory, arrays)
        return outputs, pull(cotangents)

    label = f"{channels}x{width}c{plan.tiles.chunk}{size.label}"
    arguments = (inputs, memory, arrays, (inputs.value, memory, sums))
    spans = size.batch * size.value_heads * length // 64
    return Program(name, label, dtype, train, arguments, repeats, spans)


def planned(
    name: str, dtype: str, channels: int, width: int, tiles: Tiles, size: Size
) -> tuple[Plan, int]:
    """How a call of `sequence_program`'s rule is cut, and its length once padded."""
    gate = None
    if name.startswith("carve"):
        tiles = dataclasses.replace(tiles, chunk=min(tiles.chunk, size.gate_chunk))
        gate = Gate(size.gate_chunk // tiles.chunk, 1.0, False, None, width, dtype)
    if name.startswith("gdn2_walk"):
        tiles = dataclasses.replace(tiles, solve="walk")
    if name == "gdn2_stretches":
        tiles = dataclasses.replace(tiles, stretches=STRETCHES)
    floor = LOWEST_ANCHORED if name.endswith("_bounded") else None
    whole = _inputs(size, dtype, channels, width, gate is not None)
    return make_plan(tiles, channels**-0.5, whole, gate, floor, interpret=False)


def _of(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def _inputs(
    size: Size, dtype: str, channels: int, width: int, gated: bool, per_head: bool = False
) -> Inputs:
    keys, values = ((size.batch, size.length, h) for h in (size.heads, size.value_heads))
    key, value = _of(*keys, channels, dtype=dtype), _of(*values, width, dtype=dtype)
    erase = _of(*keys, 1, dtype=dtype) if per_head else key
    write = _of(*values, 1, dtype=dtype) if gated or per_head else value
    return Inputs(key, key, value, _of(*keys, 1 if per_head else channels), erase, write)


def _gate_arrays(size: Size, channels: int, width: int) -> tuple[GateArrays, Any]:
    """The content gate's arrays, and the sums of outputs of its chunks."""
    heads, chunks = size.value_heads, size.length // size.gate_chunk
    content = _of(size.batch, heads, width)
    arrays = GateArrays(
        _of(heads, width, RANK),
        _of(heads, RANK, channels),
        content,
        content,
        _of(size.batch, chunks),
    )
    return arrays, _of(size.batch, chunks, heads, width)


def step_programs(dtype: str, width: int) -> list[Program | TritonProgram]:
    """The decode step of 512 sequences, behind both backends."""
    sizes = StepSizes(512, HEADS, HEADS, width, width, width, width, width)
    tiles = default_tiles(sizes)

    def of(*shape: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    row = of(512, HEADS, width)
    decay, memory = (
        of(512, HEADS, width, dtype=jnp.float32),
        of(512, HEADS, width, width, dtype=jnp.float32),
    )
    label = f"w{width}v{tiles.block_value}"
    function = functools.partial(decode_step, scale=width**-0.5)
    arguments = (row, row, row, decay, row, row, memory)
    signature = aot_signature(sizes, tiles, dtype=dtype, gate_dtype=dtype)
    return [
        Program("step", label, dtype, function, arguments),
        TritonProgram("step_triton", label, dtype, *signature),
    ]


def programs(device_kind: str, capability: float) -> list[Program | TritonProgram]:
    """All programs that run on a device, at every dtype and every tile of the table for it."""
    found: list[Program | TritonProgram] = []
    for dtype in DTYPES:
        for width in WIDTHS:
            for name in ("gdn2", "gdn2_walk", "carve"):
                program = _fitting(name, dtype, width, device_kind, capability)
                if program is None:
                    continue
                found.append(program)
                if dtype == "bfloat16":
                    bounded = _fitting(f"{name}_bounded", dtype, width, device_kind, capability)
                    found += [bounded] if bounded is not None else []
            found += step_programs(dtype, width)
    return found


def counted(device_kind: str, capability: float) -> list[Program]:
    """The programs whose instructions are recorded: the official size, exact and bounded, and what
    departs from it in one thing: dtype, width, grouped values, few heads, gate chunk."""
    listed = [(name, "bfloat16", 128, OFFICIAL) for name in (*RULES, "gdn")]
    listed += [("gdn2", "float16", 128, OFFICIAL)]
    for name in PLAIN:
        listed += [(name, "bfloat16", 64, OFFICIAL)]
        listed += [(name, "bfloat16", 128, size) for size in (GROUPED, FEW_HEADS)]
    listed += [("gdn2", "bfloat16", 128, HALF_BLOCKS)]
    listed += [("carve", "bfloat16", 128, Size(gate_chunk=length)) for length in (16, 256)]
    listed += [("gdn2_stretches", "bfloat16", 128, FEW_HEADS)]
    return _all_fitting(listed, device_kind, capability)


def countable(device_kind: str, capability: float) -> list[Program]:
    """Those, and others that take minutes each: other dtypes, and heads of 256 channels."""
    listed = [("carve", "float16", 128, OFFICIAL)]
    listed += [(name, "float32", 128, OFFICIAL) for name in PLAIN]
    listed += [(name, "bfloat16", 256, OFFICIAL) for name in PLAIN]
    others = _all_fitting(listed, device_kind, capability)
    return [*counted(device_kind, capability), *others]


def _all_fitting(listed: Sequence[tuple], device_kind: str, capability: float) -> list[Program]:
    found = [
        _fitting(name, dtype, width, device_kind, capability, size)
        for name, dtype, width, size in listed
    ]
    return [program for program in found if program is not None]


GROUPED = Size(heads=4)
FEW_HEADS = Size(batch=1)
HALF_BLOCKS = Size(batch=4)  # whose value channels are scanned in blocks of 64
STRETCHES = 8  # of which each head of `FEW_HEADS` has a program: 128 of an H100's 132
PLAIN = ("gdn2", "carve")
RULES = ("gdn2", "carve", "gdn2_walk", "gdn2_bounded", "carve_bounded")


def _fitting(
    name: str,
    dtype: str,
    width: int,
    device_kind: str,
    capability: float,
    size: Size = OFFICIAL,
) -> Program | None:
    """The program with the table's tiles, V halved where a state would be too large; None where
    even that one is."""
    values, content = width, name.startswith(("carve", "gdn2_walk"))
    if name.startswith("carve") and not holds_state(dtype, width, values, capability):
        values //= 2
        if not holds_state(dtype, width, values, capability):
            return None
    tiles = choose(dtype, width, values, device_kind, content, capability)
    return sequence_program(name, dtype, width, values, tiles, size)
