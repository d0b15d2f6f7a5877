"""The plain rule's backward scan over the tiles of a part, last to first, as one kernel.

    dR = Pᵀ dO + K_tail dS        dW = Aᵀ dR        dS ← Diag(γ_C) dS + (γ⊙q)ᵀ dO − Ēᵀ dW

A program has a head and 64 or 128 of its value channels, 64 in each warpgroup: dSᵀ [64, K] float32
stays in registers over the whole part. Operands come ahead as in `plain`; dW and dS leave through
shared memory of their own, while the next products run. Notation of arXiv 2605.22791 (GDN-2).
"""

import functools
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.blocks.wy import Array
from pallas_kernels.mosaic.parts import (
    BF16,
    BLOCK,
    F32,
    ROW,
    TILE,
    Program,
    along_rows,
    compiler_params,
    interpreter,
    load,
    multiply,
    operand_memory,
    transposed,
)
from pallas_kernels.mosaic.plain import SLOTS, Barriers
from pallas_kernels.triton.span import BK_DECAYED, K_TO_END, Q_DECAYED


class Sizes(NamedTuple):
    """What is static about a scan: see `plain.Sizes`; `first` is a token of `d_output`."""

    batch: int
    value_heads: int
    key_heads: int
    length: int
    first: int
    channels: int
    width: int
    groups: int
    scale: float
    interpret: bool


class Inputs(NamedTuple):
    """Arrays of a scan, in global memory.

    Attributes:
      d_output: dO [B, T, N, V] bfloat16 of the whole sequence.
      tiles, squares, ends: as in `triton.span.Scores`, of the part, with A.
      d_memory: gradient of the state after the part, transposed [B, N, V, K] float32.
    """

    d_output: Any
    tiles: Any
    squares: Any
    ends: Any
    d_memory: Any


class Outputs(NamedTuple):
    """What a scan leaves behind: `d_written`, `d_states` and `d_memory` of
    `triton.scan_backward.BackwardScanOutputs`, the first two in bfloat16."""

    d_written: Any
    d_states: Any
    d_memory: Any


class Slots(NamedTuple):
    """Operands of tiles in shared memory, the first axis that of the slots."""

    d_output: Any
    to_end: Any
    pairs: Any
    inverse: Any
    query: Any
    erased: Any
    ends: Any


class Outgoing(NamedTuple):
    """Results of each warpgroup on their way out: dW [C, 64] and dSᵀ [64, K]."""

    d_written: Any
    d_state: Any


class Scan(NamedTuple):
    """What the steps of a warpgroup share."""

    sizes: Sizes
    at: Program
    x: Inputs
    out: Outputs
    slots: Slots
    outgoing: Outgoing


def scratch(sizes: Sizes) -> tuple[Any, ...]:
    """Shared memory of a program: slots, barriers and results on their way out."""
    rows, columns = sizes.channels, sizes.groups * BLOCK
    slots = Slots(
        d_output=operand_memory(SLOTS, TILE, columns),
        to_end=operand_memory(SLOTS, TILE, rows),
        pairs=operand_memory(SLOTS, TILE, TILE),
        inverse=operand_memory(SLOTS, TILE, TILE),
        query=operand_memory(SLOTS, TILE, rows),
        erased=operand_memory(SLOTS, TILE, rows),
        ends=plgpu.SMEM((SLOTS, rows), F32),
    )
    barriers = Barriers(
        filled=plgpu.Barrier(num_arrivals=len(Slots._fields), num_barriers=SLOTS),
        free=plgpu.Barrier(num_arrivals=sizes.groups, num_barriers=SLOTS),
    )
    outgoing = Outgoing(
        d_written=operand_memory(sizes.groups, TILE, BLOCK),
        d_state=operand_memory(sizes.groups, BLOCK, rows),
    )
    return slots, barriers, outgoing


def _fetch(scan: Scan, tile: Any, slot: Any, barrier: Any) -> None:
    """Ask for a tile's operands."""
    sizes, at, x, slots = scan.sizes, scan.at, scan.x, scan.slots
    key_head = jax.lax.div(at.head, sizes.value_heads // sizes.key_heads)
    here = pl.ds(tile * TILE, TILE)
    there = pl.ds(sizes.first + tile * TILE, TILE)
    columns = pl.ds(at.block, sizes.groups * BLOCK)

    def copy(source: Any, target: Any) -> None:
        plgpu.copy_gmem_to_smem(source, target.at[slot], barrier)

    copy(x.d_output.at[at.row, there, at.head, columns], slots.d_output)
    for place, target in (
        (K_TO_END, slots.to_end),
        (Q_DECAYED, slots.query),
        (BK_DECAYED, slots.erased),
    ):
        own = pl.ds(place * sizes.channels, sizes.channels)
        copy(x.tiles.at[at.row, here, key_head, own], target)
    for first, target in ((0, slots.pairs), (SPAN, slots.inverse)):
        copy(x.squares.at[at.row, here, key_head, pl.ds(first, TILE)], target)
    copy(x.ends.at[at.row, tile, key_head], slots.ends)


def _send(source: Any, held: Any, values: Array, target: Any) -> None:
    """Copy values to global memory by way of `held`, the same memory as `source` or transposed."""
    # Of two copies in flight the older is this memory's: the two kinds take turns.
    plgpu.wait_smem_to_gmem(1, wait_read_only=True)
    held[...] = values
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(source, target)


def _send_state(scan: Scan, tile: Any, rounded: Array) -> None:
    """dSᵀ [64, K] at the end of a tile, to `d_states`."""
    at, own = scan.at, scan.outgoing.d_state.at[scan.at.group]
    _send(own, own, rounded, scan.out.d_states.at[at.row, tile, at.head, at.channels])


def _tile(scan: Scan, tile: Any, slot: Any, d_memory: Array, rounded: Array) -> Array:
    """dSᵀ [64, K] float32 before a tile, of that after it and the same rounded."""
    sizes, at, slots = scan.sizes, scan.at, scan.slots
    square, state, interpret = (BLOCK, TILE), (BLOCK, sizes.channels), sizes.interpret
    own = pl.ds(at.group * BLOCK, BLOCK)
    d_output = load(transposed(slots.d_output.at[slot, :, own])).astype(F32) * sizes.scale
    d_output = d_output.astype(BF16)
    terms = [(rounded, transposed(slots.to_end.at[slot])), (d_output, slots.pairs.at[slot])]
    d_residual = multiply(terms, square, interpret).astype(BF16)
    d_written = multiply([(d_residual, slots.inverse.at[slot])], square, interpret)
    source = scan.outgoing.d_written.at[at.group]
    target = scan.out.d_written.at[at.row, pl.ds(tile * TILE, TILE), at.head, at.channels]
    _send(source, transposed(source), d_written.astype(BF16), target)
    decayed = d_memory * along_rows(load(slots.ends.at[slot], ROW), state)
    minus = (-d_written).astype(BF16)
    terms = [(d_output, slots.query.at[slot]), (minus, slots.erased.at[slot])]
    return multiply(terms, state, interpret, decayed)


def _scan_back_kernel(*refs: Any, sizes: Sizes) -> None:
    x, out, (slots, barriers, outgoing) = Inputs(*refs[:5]), Outputs(*refs[5:8]), refs[8:]
    group = jax.lax.axis_index("group")
    block = jax.lax.axis_index("v") * sizes.groups * BLOCK
    at = Program(jax.lax.axis_index("b"), jax.lax.axis_index("n"), block, group)
    scan = Scan(sizes, at, x, out, slots, outgoing)
    tiles = sizes.length // TILE

    def fetch(turn: Any) -> None:
        slot = jax.lax.rem(turn, SLOTS)
        _fetch(scan, tiles - 1 - turn, slot, barriers.filled.at[slot])

    @pl.when(group == 0)
    def _() -> None:
        for turn in range(min(SLOTS, tiles)):
            fetch(turn)

    def step(turn: Any, d_memory: Array) -> Array:
        slot, tile = jax.lax.rem(turn, SLOTS), tiles - 1 - turn
        rounded = d_memory.astype(BF16)
        _send_state(scan, tile, rounded)
        plgpu.barrier_wait(barriers.filled.at[slot])
        d_memory = _tile(scan, tile, slot, d_memory, rounded)
        plgpu.barrier_arrive(barriers.free.at[slot])

        @pl.when(group == 0)
        def _() -> None:
            plgpu.barrier_wait(barriers.free.at[slot])
            plgpu.commit_smem()  # what was read there comes before what is copied there

        @pl.when((group == 0) & (turn + SLOTS < tiles))
        def _() -> None:
            fetch(turn + SLOTS)

        return d_memory

    own = x.d_memory.at[at.row, at.head, at.channels]
    d_memory = jax.lax.fori_loop(0, tiles, step, load(own))
    _send_state(scan, tiles, d_memory.astype(BF16))  # the last entry: before the first tile
    out.d_memory.at[at.row, at.head, at.channels][...] = d_memory
    plgpu.wait_smem_to_gmem(0)


def run(sizes: Sizes, x: Inputs) -> Outputs:
    """Launch the scan."""
    batch, heads, tiles = sizes.batch, sizes.value_heads, sizes.length // TILE
    state = (heads, sizes.width, sizes.channels)
    kernel = plgpu.kernel(
        functools.partial(_scan_back_kernel, sizes=sizes),
        out_type=(
            jax.ShapeDtypeStruct((batch, sizes.length, heads, sizes.width), BF16),
            jax.ShapeDtypeStruct((batch, tiles + 1, *state), BF16),
            jax.ShapeDtypeStruct((batch, *state), F32),
        ),
        scratch_types=scratch(sizes),
        grid=(batch, heads, sizes.width // (sizes.groups * BLOCK)),
        grid_names=("b", "n", "v"),
        num_threads=sizes.groups,
        thread_name="group",
        kernel_name="_walk_back_kernel",
        compiler_params=compiler_params(),
        interpret=interpreter(sizes.interpret),
    )
    return Outputs(*kernel(*x))
