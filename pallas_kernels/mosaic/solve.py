"""The warpgroup of CARVE's scan that finds b of the content, and A = (I + T)⁻¹ of b.

All on 64 × 64 squares and halves of the key channels, from shared memory to shared memory; see
`triton.solve` for the same in Triton.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.blocks.wy import Array
from pallas_kernels.mosaic.backend import RANK
from pallas_kernels.mosaic.gated_memory import LEVELS, Scan, fetch_keys, fetch_levels
from pallas_kernels.mosaic.parts import (
    BF16,
    F32,
    ROW,
    SQUARE,
    TILE,
    along_rows,
    load,
    multiply,
    transposed,
)

HALF = 64  # key channels that the solver has in registers at once


def _product(scan: Scan, pairs: Any, columns: int = TILE, start: Array | None = None) -> Array:
    """start + the sum of the products a b of pairs, [C, columns]."""
    return multiply(pairs, (TILE, columns), scan.sizes.interpret, start)


def _halves(x: Array) -> tuple[Array, Array]:
    """x float32 as the sum of two bfloat16."""
    first = x.astype(BF16)
    return first, (x - first.astype(F32)).astype(BF16)


def _low_rank(scan: Scan) -> tuple[Array, Array]:
    """m P_down, in two halves of bfloat16, [C, R] with all rows alike: what the tensor cores give
    is then laid out as the logits are."""
    gate, shared = scan.sizes.gate, scan.shared
    content = load(shared.content, ROW)
    if gate.norm_eps is not None:
        square = jnp.sum(content * content) / gate.channels
        content = content * jax.lax.rsqrt(square + gate.norm_eps)
    first, rest = (along_rows(x, (TILE, scan.sizes.width)) for x in _halves(content))
    down, left = (transposed(shared.down.at[pl.ds(i * RANK, RANK)]) for i in range(2))
    return _halves(_product(scan, [(first, down), (rest, down), (first, left)], RANK))


def _gate(scan: Scan, low_rank: tuple[Array, Array]) -> None:
    """Put −b in the place of the logits, −γ⊙b⊙k in that of γ⊙k."""
    sizes, shared, (first, rest) = scan.sizes, scan.shared, low_rank
    for begin in range(0, sizes.channels, HALF):
        columns = pl.ds(begin, HALF)
        up, left = (
            transposed(shared.up.at[pl.ds(i * sizes.channels + begin, HALF)]) for i in range(2)
        )
        shift = _product(scan, [(first, up), (rest, up), (first, left)], HALF)
        own = shared.logits.at[:, columns]
        logits = load(own).astype(F32) + shift
        root = jax.lax.rsqrt(1.0 + jnp.exp(-logits))  # its square takes less than a division
        minus = (-sizes.gate.scale * root * root).astype(BF16)
        own[...] = minus
        keys = shared.keys.at[:, columns]
        keys[...] = minus * load(keys)
    plgpu.commit_smem()


def _order() -> tuple[Array, Array]:
    """r ^ c [C, C], by whose highest bit an entry belongs to a level, and r > c; laid out as
    products are, and found where they are asked for. (Found before the loop over tiles, they and
    the masks that are made of them would be spilled.)"""
    row, column = (
        plgpu.broadcasted_iota(jnp.int32, (TILE, TILE), axis, layout=SQUARE) for axis in (0, 1)
    )
    row = row + jax.lax.optimization_barrier(jnp.int32(0))
    return row ^ column, row > column


def _minus_system(scan: Scan) -> Array:
    """−T [C, C] float32, anything on and above the diagonal."""
    shared = scan.shared

    def pairs(level: Any) -> Iterator[tuple[Array, Any]]:
        for begin in range(0, scan.sizes.channels, HALF):
            columns = pl.ds(begin, HALF)
            keys = shared.levels.at[level, :, columns]
            yield load(shared.logits.at[:, columns]) * load(keys), transposed(keys)

    def add_level(level: Any, system: Array) -> Array:
        found = _product(scan, pairs(level))
        return jnp.where(_order()[0] < (TILE >> level), found, system)

    # A loop, as in `_invert`: unrolled, addresses and masks of every turn would be kept, and spill.
    system = plgpu.layout_cast(jnp.zeros((TILE, TILE), F32), SQUARE)
    return jax.lax.fori_loop(0, LEVELS, add_level, system)


def _put(ref: Any, x: Array) -> Array:
    """x in bfloat16, written where products read it."""
    rounded = x.astype(BF16)
    ref[...] = rounded
    plgpu.commit_smem()
    return rounded


def _invert(scan: Scan, system: Array) -> None:
    """Put A = (I + T)⁻¹ into `Shared.block`: doubling and one correction as in
    `wy.unit_inverse`, of −T."""
    shared, (apart, below) = scan.shared, _order()
    system = jnp.where(below, system, 0.0)
    rounded, rest = _halves(system)
    inverse = jnp.where(apart == 0, 1.0, jnp.where(apart == 1, system, 0.0))

    def double(level: Any, inverse: Array) -> Array:
        _put(shared.block, inverse)
        low = 1 << level
        inside = (_order()[0] & -low) == low
        corner = jnp.where(inside, rounded.astype(F32), 0.0).astype(BF16)
        _put(shared.inner, _product(scan, [(corner, shared.block)]))
        return _product(scan, [(load(shared.block), shared.inner)], start=inverse)

    inverse = jax.lax.fori_loop(1, LEVELS, double, inverse)
    block = _put(shared.block, inverse)
    wide = block.astype(F32)
    start = jnp.where(_order()[0] == 0, 1.0, 0.0) - wide
    pairs = [(rounded, shared.block), (rest, shared.block)]
    _put(shared.inner, _product(scan, pairs, start=start))
    _put(shared.block, _product(scan, [(block, shared.inner)], start=wide))


def solve(whole: Scan, tiles: int) -> None:
    """The warpgroup that solves, over all tiles."""
    scan = whole.of_a_turn()
    at, x, barriers = scan.at, scan.x, scan.barriers
    plgpu.copy_gmem_to_smem(x.down.at[at.head], scan.shared.down, barriers.projections)
    plgpu.copy_gmem_to_smem(x.up.at[at.head], scan.shared.up, barriers.projections)
    fetch_levels(scan, 0)
    fetch_keys(scan, 0)
    scan.shared.content[...] = load(x.content.at[at.row, at.head], ROW)
    plgpu.commit_smem()
    plgpu.barrier_wait(barriers.projections)

    def step(tile: Any, carry: None) -> None:
        scan = whole.of_a_turn()
        plgpu.barrier_wait(barriers.solver_filled)
        _gate(scan, _low_rank(scan))
        plgpu.barrier_arrive(barriers.erased)
        system = _minus_system(scan)
        plgpu.commit_smem()  # all warps have read what is now filled again

        @pl.when(tile + 1 < tiles)
        def _() -> None:
            fetch_levels(scan, tile + 1)

        _invert(scan, system)
        plgpu.barrier_arrive(barriers.solved)
        plgpu.barrier_wait(barriers.erased_free)
        plgpu.commit_smem()  # what was read there comes before what is copied there

        @pl.when(tile + 1 < tiles)
        def _() -> None:
            fetch_keys(scan, tile + 1)

        plgpu.barrier_wait(barriers.seen)

    jax.lax.fori_loop(0, tiles, step, None)
