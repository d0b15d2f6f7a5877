"""CARVE's scan over the tiles of a part, as one kernel: the gate, the solve and the state.

    b = gate(content)   T, A = (I + T)⁻¹   R = A (Z − Ē S)   O = scale · ((γ⊙q) S + P R)   S

Warpgroups of a program, which has a head: one or two that hold 64 value channels of the state each,
and one that solves. A tile's erase gate reads the outputs of the gate chunk before, so the two wait
for each other; but the states are updated, outputs stored and (γ⊙q) S found while the next tile is
solved. Notation of arXiv 2605.22791 (GDN-2) and 2606.27229 (CARVE).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.blocks.wy import Array
from pallas_kernels.mosaic.gated_memory import (
    Inputs,
    Outputs,
    Scan,
    Sizes,
    fetch_state,
    fetch_value,
    scratch,
)
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
    transposed,
)
from pallas_kernels.mosaic.solve import solve


def _written(scan: Scan) -> Array:
    """(v ⊙ w)ᵀ [64, C] float32."""
    value = load(transposed(scan.shared.value.at[scan.at.group])).astype(F32)
    return value * along_rows(load(scan.shared.write, ROW).astype(F32), (BLOCK, TILE))


def _advance(scan: Scan, memory: Array, put: Any) -> tuple[Array, Any]:
    """The state after a tile, and what `put` makes of its outputs, transposed [64, C] float32."""
    sizes, shared, barriers = scan.sizes, scan.shared, scan.barriers
    square, state, interpret = (BLOCK, TILE), (BLOCK, sizes.channels), sizes.interpret
    plgpu.barrier_wait(barriers.state_filled)
    plgpu.barrier_wait(barriers.value_filled.at[scan.at.group])
    start = _written(scan)
    plgpu.barrier_wait(barriers.erased)
    rounded = memory.astype(BF16)
    right = multiply([(rounded, transposed(shared.keys))], square, interpret, start).astype(BF16)
    plgpu.barrier_arrive(barriers.erased_free)

    def work(output: Accumulator) -> tuple[Array, Array]:
        output.add(rounded, transposed(shared.query))
        output.wait()
        plgpu.barrier_wait(barriers.solved)
        solved = multiply([(right, transposed(shared.block))], square, interpret)
        residual = solved.astype(BF16)
        output.add(residual, transposed(shared.pairs))
        return residual, output.read()

    residual, output = accumulate(work, square, interpret)
    given = put(output * sizes.scale)
    decayed = memory * along_rows(load(shared.ends, ROW), state)
    return multiply([(residual, shared.to_end)], state, interpret, decayed), given


def _carry(whole: Scan, tiles: int) -> None:
    """A warpgroup that holds a state, over all tiles."""
    scan = whole.of_a_turn()
    sizes, at, x, out, barriers = scan.sizes, scan.at, scan.x, scan.out, scan.barriers

    @pl.when(at.group == 0)
    def _() -> None:
        fetch_state(scan, 0)

    fetch_value(scan, 0)

    def step(tile: Any, carry: tuple) -> tuple:
        memory, partial = carry
        scan = whole.of_a_turn()
        own = scan.shared.value.at[at.group]
        chunk = jax.lax.div(tile, sizes.gate.tiles)
        last = jax.lax.rem(tile, sizes.gate.tiles) == sizes.gate.tiles - 1
        factor = x.mean[at.row, chunk]

        def put(output: Array) -> Array:
            total = partial + jnp.sum(output, axis=1)
            out.sums.at[at.row, chunk, at.head, at.channels][...] = total

            @pl.when(last)
            def _() -> None:
                scan.shared.content.at[at.channels][...] = factor * total

            plgpu.barrier_arrive(barriers.seen)
            transposed(own)[...] = output.astype(BF16)
            plgpu.commit_smem()
            there = out.output.at[at.row, scan.part(tile), at.head, at.channels]
            plgpu.copy_smem_to_gmem(own, there)
            return jnp.where(last, 0.0, total)

        memory, partial = _advance(scan, memory, put)
        plgpu.barrier_arrive(barriers.state_free)

        @pl.when(at.group == 0)
        def _() -> None:
            plgpu.barrier_wait(barriers.state_free)
            plgpu.commit_smem()

        @pl.when((at.group == 0) & (tile + 1 < tiles))
        def _() -> None:
            fetch_state(scan, tile + 1)

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

        @pl.when(tile + 1 < tiles)
        def _() -> None:
            fetch_value(scan, tile + 1)

        return memory, partial

    memory = load(x.memory.at[at.row, at.head, at.channels])
    partial = load(x.partial_sum.at[at.row, at.head, at.channels], COLUMN)
    memory, _ = jax.lax.fori_loop(0, tiles, step, (memory, partial))
    out.memory.at[at.row, at.head, at.channels][...] = memory
    plgpu.wait_smem_to_gmem(0)


def _scan_kernel(*refs: Any, sizes: Sizes) -> None:
    x, out, (shared, barriers) = Inputs(*refs[:12]), Outputs(*refs[12:15]), refs[15:]
    group = jax.lax.axis_index("group")
    at = Program(jax.lax.axis_index("b"), jax.lax.axis_index("n"), 0, group)
    scan = Scan(sizes, at, x, out, shared, barriers)
    tiles = sizes.length // TILE

    @pl.when(group == sizes.states)
    def _() -> None:
        solve(scan, tiles)

    @pl.when(group < sizes.states)
    def _() -> None:
        _carry(scan, tiles)


def run(sizes: Sizes, x: Inputs) -> Outputs:
    """Launch the scan."""
    batch, heads = sizes.batch, sizes.value_heads
    kernel = plgpu.kernel(
        functools.partial(_scan_kernel, sizes=sizes),
        out_type=(
            jax.ShapeDtypeStruct((batch, sizes.length, heads, sizes.width), BF16),
            jax.ShapeDtypeStruct((batch, heads, sizes.width, sizes.channels), F32),
            jax.ShapeDtypeStruct((batch, sizes.chunks, heads, sizes.width), F32),
        ),
        scratch_types=scratch(sizes),
        grid=(batch, heads),
        grid_names=("b", "n"),
        num_threads=sizes.states + 1,
        thread_name="group",
        kernel_name="_walk_kernel",
        compiler_params=compiler_params(),
        interpret=interpreter(sizes.interpret),
    )
    return Outputs(*kernel(*x))
