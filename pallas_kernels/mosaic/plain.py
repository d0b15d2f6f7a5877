"""The plain rule's scan over the tiles of a part, the inverses known, as one kernel.

    R = A (Z − Ē S)      O = scale · ((γ⊙q) S + P R)      S ← Diag(γ_C) S + (k⊙γ_C⊘γ)ᵀ R

A program has a head and 64 or 128 of its value channels, 64 in each warpgroup: Sᵀ [64, K] float32
stays in registers over the whole part. The first warpgroup asks for the next tile's operands while
the present one is worked on; a slot of shared memory is filled again once every warpgroup has let
go of it. Notation of arXiv 2605.22791 (GDN-2).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.blocks.wy import Array
from pallas_kernels.mosaic.parts import (
    BF16,
    BLOCK,
    COLUMN,
    F32,
    ROW,
    TILE,
    Accumulator,
    Program,
    accumulate,
    along_rows,
    compiler_params,
    interpreter,
    load,
    multiply,
    operand_memory,
    transposed,
)
from pallas_kernels.triton.span import BK_DECAYED, K_TO_END, Q_DECAYED

SLOTS = 2  # tiles in shared memory: one that is worked on, one on its way


class Sizes(NamedTuple):
    """What is static about a scan.

    Attributes:
      batch, value_heads, key_heads: B, N and the heads of the scores.
      length: tokens of the part.
      first: token of `value` that the part starts at.
      channels, width: K and V.
      groups: warpgroups of a program, 64 value channels each.
      write_channels: V, or 1 where `write` holds one gate per head.
      scale: factor of the outputs.
      sums: whether the outputs of the part are summed.
      interpret: run without a GPU.
    """

    batch: int
    value_heads: int
    key_heads: int
    length: int
    first: int
    channels: int
    width: int
    groups: int
    write_channels: int
    scale: float
    sums: bool
    interpret: bool


class Inputs(NamedTuple):
    """Arrays of a scan, in global memory.

    Attributes:
      value: v [B, T, N, V] bfloat16 of the whole sequence.
      write: w [B, T, N, V] bfloat16, or [B, N, T] where there is one gate per head.
      tiles, squares, ends: as in `triton.span.Scores`, of the part.
      memory: the state before the part, transposed [B, N, V, K] float32.
    """

    value: Any
    write: Any
    tiles: Any
    squares: Any
    ends: Any
    memory: Any


class Outputs(NamedTuple):
    """What a scan leaves behind: outputs [B, T, N, V] of the part, the last state, transposed, and
    the outputs' sums [B, N, V] float32, or None."""

    output: Any
    memory: Any
    sums: Any


class Slots(NamedTuple):
    """Operands of tiles in shared memory, the first axis that of the slots."""

    query: Any
    erased: Any
    to_end: Any
    pairs: Any
    inverse: Any
    value: Any
    write: Any
    ends: Any


class Barriers(NamedTuple):
    """Barriers of each slot: its operands have come; every warpgroup has let go of it."""

    filled: Any
    free: Any


def scratch(sizes: Sizes) -> tuple[Any, ...]:
    """Shared memory of a program: slots, barriers and outputs on their way out."""
    rows, columns = sizes.channels, sizes.groups * BLOCK
    write = operand_memory(SLOTS, TILE, columns)
    if sizes.write_channels == 1:
        write = plgpu.SMEM((SLOTS, TILE), BF16)
    slots = Slots(
        query=operand_memory(SLOTS, TILE, rows),
        erased=operand_memory(SLOTS, TILE, rows),
        to_end=operand_memory(SLOTS, TILE, rows),
        pairs=operand_memory(SLOTS, TILE, TILE),
        inverse=operand_memory(SLOTS, TILE, TILE),
        value=operand_memory(SLOTS, TILE, columns),
        write=write,
        ends=plgpu.SMEM((SLOTS, rows), F32),
    )
    barriers = Barriers(
        filled=plgpu.Barrier(num_arrivals=len(Slots._fields), num_barriers=SLOTS),
        free=plgpu.Barrier(num_arrivals=sizes.groups, num_barriers=SLOTS),
    )
    return slots, barriers, operand_memory(sizes.groups, TILE, BLOCK)


def _fetch(sizes: Sizes, at: Program, x: Inputs, slots: Slots, filled: Any, tile: Any) -> None:
    """Ask for a tile's operands."""
    slot = jax.lax.rem(tile, SLOTS)
    barrier = filled.at[slot]
    key_head = jax.lax.div(at.head, sizes.value_heads // sizes.key_heads)
    here = pl.ds(tile * TILE, TILE)
    there = pl.ds(sizes.first + tile * TILE, TILE)
    columns = pl.ds(at.block, sizes.groups * BLOCK)

    def copy(source: Any, target: Any) -> None:
        plgpu.copy_gmem_to_smem(source, target.at[slot], barrier)

    for place, target in (
        (BK_DECAYED, slots.erased),
        (Q_DECAYED, slots.query),
        (K_TO_END, slots.to_end),
    ):
        own = pl.ds(place * sizes.channels, sizes.channels)
        copy(x.tiles.at[at.row, here, key_head, own], target)
    copy(x.value.at[at.row, there, at.head, columns], slots.value)
    if sizes.write_channels == 1:
        copy(x.write.at[at.row, at.head, there], slots.write)
    else:
        copy(x.write.at[at.row, there, at.head, columns], slots.write)
    for first, target in ((SPAN, slots.inverse), (0, slots.pairs)):
        copy(x.squares.at[at.row, here, key_head, pl.ds(first, TILE)], target)
    copy(x.ends.at[at.row, tile, key_head], slots.ends)


def _minus_written(sizes: Sizes, at: Program, slots: Slots, slot: Any) -> Array:
    """−(v ⊙ w)ᵀ [64, C] float32."""
    own = pl.ds(at.group * BLOCK, BLOCK)
    value = load(transposed(slots.value.at[slot, :, own])).astype(F32)
    if sizes.write_channels == 1:
        write = along_rows(load(slots.write.at[slot], ROW).astype(F32), (BLOCK, TILE))
    else:
        write = load(transposed(slots.write.at[slot, :, own])).astype(F32)
    return -value * write


def _tile(
    sizes: Sizes, at: Program, slots: Slots, slot: Any, memory: Array, put: Any
) -> tuple[Array, Any]:
    """The state after a tile, and what `put` makes of its outputs, transposed [64, C] float32."""
    square, state, interpret = (BLOCK, TILE), (BLOCK, sizes.channels), sizes.interpret
    rounded = memory.astype(BF16)

    def work(output: Accumulator) -> tuple[Array, Array]:
        output.add(rounded, transposed(slots.query.at[slot]))
        # R and what it is found of are negated at first, as in the Triton scan.
        start = _minus_written(sizes, at, slots, slot)
        erased, inverse = transposed(slots.erased.at[slot]), transposed(slots.inverse.at[slot])
        right = multiply([(rounded, erased)], square, interpret, start)
        solved = multiply([(right.astype(BF16), inverse)], square, interpret)
        residual = (-solved).astype(BF16)
        output.add(residual, transposed(slots.pairs.at[slot]))
        return residual, output.read()

    residual, output = accumulate(work, square, interpret)
    given = put(output * sizes.scale)
    decayed = memory * along_rows(load(slots.ends.at[slot], ROW), state)
    return multiply([(residual, slots.to_end.at[slot])], state, interpret, decayed), given


def _scan_kernel(*refs: Any, sizes: Sizes) -> None:
    x, (out, (slots, barriers, outgoing)) = Inputs(*refs[:6]), _split(sizes, refs[6:])
    block = jax.lax.axis_index("v") * sizes.groups * BLOCK
    at = Program(
        jax.lax.axis_index("b"), jax.lax.axis_index("n"), block, jax.lax.axis_index("group")
    )
    tiles = sizes.length // TILE
    fetch = functools.partial(_fetch, sizes, at, x, slots, barriers.filled)

    @pl.when(at.group == 0)
    def _() -> None:
        for tile in range(min(SLOTS, tiles)):
            fetch(tile)

    def step(tile: Any, carry: tuple) -> tuple:
        memory, *seen = carry
        slot = jax.lax.rem(tile, SLOTS)
        plgpu.barrier_wait(barriers.filled.at[slot])

        def put(output: Array) -> list:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            transposed(outgoing.at[at.group])[...] = output.astype(BF16)
            plgpu.commit_smem()
            there = out.output.at[at.row, pl.ds(tile * TILE, TILE), at.head, at.channels]
            plgpu.copy_smem_to_gmem(outgoing.at[at.group], there)
            return [total + jnp.sum(output, axis=1) for total in seen]

        memory, seen = _tile(sizes, at, slots, slot, memory, put)
        plgpu.barrier_arrive(barriers.free.at[slot])

        @pl.when(at.group == 0)
        def _() -> None:
            plgpu.barrier_wait(barriers.free.at[slot])
            plgpu.commit_smem()  # what was read there comes before what is copied there

        @pl.when((at.group == 0) & (tile + SLOTS < tiles))
        def _() -> None:
            fetch(tile + SLOTS)

        return memory, *seen

    own = x.memory.at[at.row, at.head, at.channels]
    carry: tuple = (load(own),)
    if sizes.sums:
        carry += (plgpu.layout_cast(jnp.zeros((BLOCK,), F32), COLUMN),)
    memory, *seen = jax.lax.fori_loop(0, tiles, step, carry)
    out.memory.at[at.row, at.head, at.channels][...] = memory
    if seen:
        out.sums.at[at.row, at.head, at.channels][...] = seen[0]
    plgpu.wait_smem_to_gmem(0)


def _split(sizes: Sizes, refs: tuple) -> tuple:
    """Outputs and scratch of a kernel."""
    count = 2 + sizes.sums
    return Outputs(*refs[:count], *([None] * (3 - count))), refs[count:]


def run(sizes: Sizes, x: Inputs) -> Outputs:
    """Launch the scan."""
    batch, heads = sizes.batch, sizes.value_heads
    made = [
        jax.ShapeDtypeStruct((batch, sizes.length, heads, sizes.width), BF16),
        jax.ShapeDtypeStruct((batch, heads, sizes.width, sizes.channels), F32),
    ]
    if sizes.sums:
        made.append(jax.ShapeDtypeStruct((batch, heads, sizes.width), F32))
    kernel = plgpu.kernel(
        functools.partial(_scan_kernel, sizes=sizes),
        out_type=tuple(made),
        scratch_types=scratch(sizes),
        grid=(batch, heads, sizes.width // (sizes.groups * BLOCK)),
        grid_names=("b", "n", "v"),
        num_threads=sizes.groups,
        thread_name="group",
        kernel_name="_walk_kernel",
        compiler_params=compiler_params(),
        interpret=interpreter(sizes.interpret),
    )
    found = kernel(*x)
    return Outputs(*found, *([None] * (3 - len(found))))
