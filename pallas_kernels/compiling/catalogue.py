"""Every kernel program this package ships, with the shapes and tiles it is compiled for."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.blocks.decay import LOWEST_ANCHORED
from pallas_kernels.decode.step import decode_step
from pallas_kernels.decode.step_sizes import StepSizes, aot_signature, default_tiles
from pallas_kernels.tiling import Tiles, choose, holds_state
from pallas_kernels.triton.op import GateArrays, Inputs, make_plan, run
from pallas_kernels.triton.plan import Gate


@dataclass(frozen=True)
class Program:
    """A JAX function that holds Pallas kernels, and arguments to lower it for.

    Attributes:
      name: what the program computes, such as `carve_forward`.
      tile_label: the tile its kernels are built for, such as `c32w8s2`; shapes too where they vary.
      dtype: dtype of its inputs, as a label.
      function: takes `arguments` (positional) and runs at least one kernel.
      arguments: `jax.ShapeDtypeStruct`s, or pytrees of them.
    """

    name: str
    tile_label: str
    dtype: str
    function: Callable[..., Any]
    arguments: Sequence[Any]


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


HEADS, LENGTH, RANK, GATE_CHUNK = 16, 1024, 16, 64
WIDTHS = (64, 128, 256)
DTYPES = ("bfloat16", "float16", "float32")


def sequence_program(name: str, dtype: str, channels: int, width: int, tiles: Tiles) -> Program:
    """Forward and every gradient of one rule, B·T = 1·1024, 16 heads, K = channels, V = width.

    `name` is "gdn2", "gdn2_walk" (the inverse found on the way, as CARVE must) or "carve"; the
    ending "_bounded" promises g ≥ −10. The shape is small, since kernels depend on B and T by
    constants alone.
    """
    gated = name.startswith("carve")
    rows = (1, LENGTH, HEADS)

    def of(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    key, value = of(*rows, channels, dtype=dtype), of(*rows, width, dtype=dtype)
    write = of(*rows, 1, dtype=dtype) if gated else value
    inputs = Inputs(key, key, value, of(*rows, channels), key, write)
    content = of(1, HEADS, width)
    arrays = gate = None
    if gated:
        arrays = GateArrays(
            of(HEADS, width, RANK),
            of(HEADS, RANK, channels),
            content,
            content,
            of(1, LENGTH // GATE_CHUNK),
        )
        gate = Gate(GATE_CHUNK // tiles.chunk, 1.0, False, None, width, dtype)
    if name.startswith("gdn2_walk"):
        tiles = dataclasses.replace(tiles, solve="walk")
    floor = LOWEST_ANCHORED if name.endswith("_bounded") else None
    plan, _ = make_plan(tiles, channels**-0.5, inputs, gate, floor, interpret=False)
    plan = plan._replace(parts=1)
    memory = of(1, HEADS, width, channels)
    sums = of(1, LENGTH // GATE_CHUNK, HEADS, width) if gated else None

    def train(inputs: Inputs, memory: Any, arrays: Any, cotangents: Any) -> Any:
        outputs, pull = jax.vjp(lambda *a: run(plan, *a), inputs, memory, arrays)
        return outputs, pull(cotangents)

    label = f"{channels}x{width}c{tiles.chunk}"
    return Program(name, label, dtype, train, (inputs, memory, arrays, (value, memory, sums)))


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
                content = name != "gdn2"
                channels, values = width, width
                if name == "carve" and not holds_state(dtype, channels, values, capability):
                    values //= 2
                    if not holds_state(dtype, channels, values, capability):
                        continue
                tiles = choose(dtype, channels, values, device_kind, content)
                names = [name, name + "_bounded"] if dtype == "bfloat16" else [name]
                found += [sequence_program(n, dtype, channels, values, tiles) for n in names]
            found += step_programs(dtype, width)
    return found
