"""CARVE's scan over the tiles of a part, as one kernel: the gate, the solve and the state.

    b = gate(content)   T, A = (I + T)⁻¹   R = A (Z − Ē S)   O = scale · ((γ⊙q) S + P R)   S

Warpgroups of a program, which has a head: one or two that hold 64 value channels of the state each,
and one that solves. A tile's erase gate reads the outputs of the gate chunk before, so the two wait
for each other; but the states are updated, outputs stored and (γ⊙q) S found while the next tile is
solved. Operands have one place each in shared memory, and a tile's are asked for as soon as those
before it have been read. Notation of arXiv 2605.22791 (GDN-2) and 2606.27229 (CARVE).
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.blocks.wy import Array
from pallas_kernels.mosaic.backend import RANK
from pallas_kernels.mosaic.parts import (
    BF16,
    BLOCK,
    COLUMN,
    F32,
    ROW,
    SQUARE,
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
from pallas_kernels.triton.plan import Gate
from pallas_kernels.triton.span import BK_DECAYED, K_LEVELS, K_TO_END, Q_DECAYED

HALF = 64  # key channels that the solver has in registers at once
LEVELS = TILE.bit_length() - 1


class Sizes(NamedTuple):
    """What is static about a scan: see `plain.Sizes`.

    Attributes:
      gate: settings of the content gate.
      erase_heads: heads of the logits.
      chunks: gate chunks of the part.
    """

    batch: int
    value_heads: int
    key_heads: int
    erase_heads: int
    length: int
    first: int
    channels: int
    width: int
    scale: float
    chunks: int
    gate: Gate
    interpret: bool

    @property
    def states(self) -> int:
        """Warpgroups that hold states."""
        return self.width // BLOCK


class Inputs(NamedTuple):
    """Arrays of a scan, in global memory.

    Attributes:
      value: v [B, T, N, V] bfloat16 of the whole sequence.
      write: w [B, N, T] bfloat16.
      logits: of the erase gate [B, T, H, K] bfloat16.
      tiles, squares, ends: as in `triton.span.Scores`, of the part, with the keys of each level.
      memory: the state before the part, transposed [B, N, V, K] float32.
      down, up: P_downᵀ [N, 2 · R, V] and P_upᵀ [N, 2 · K, R] bfloat16: rounded, then what that
        leaves.
      content, partial_sum: as in `triton.plan.Content` [B, N, V] float32.
      mean: as there [B, chunks].
    """

    value: Any
    write: Any
    logits: Any
    tiles: Any
    squares: Any
    ends: Any
    memory: Any
    down: Any
    up: Any
    content: Any
    partial_sum: Any
    mean: Any


class Outputs(NamedTuple):
    """What a scan leaves behind: outputs [B, T, N, V] of the part, the last state, transposed, and
    the outputs' sums in each gate chunk [B, chunks, N, V] float32."""

    output: Any
    memory: Any
    sums: Any


class Shared(NamedTuple):
    """Shared memory of a program.

    Attributes:
      levels: keys under the factors of each level [levels, C, K].
      logits: of the erase gate [C, K]; then −b.
      keys: γ⊙k [C, K]; then −γ⊙b⊙k.
      query, to_end, pairs, write, ends: as in `plain.Slots`, of one tile.
      value: v [C, 64] of each warpgroup; then its outputs on their way out.
      block: A and what becomes of it [C, C]; inner: [C, C], what is multiplied by it.
      down, up, content: of the content gate.
    """

    levels: Any
    logits: Any
    keys: Any
    query: Any
    to_end: Any
    pairs: Any
    write: Any
    ends: Any
    value: Any
    block: Any
    inner: Any
    down: Any
    up: Any
    content: Any


class Barriers(NamedTuple):
    """What warpgroups wait for, once in every tile.

    Attributes:
      solver_filled: keys and logits have come, for the solver.
      state_filled: the other operands have come, for the states.
      value_filled: v has come, of each state.
      erased: −γ⊙b⊙k is there.
      solved: A is there.
      erased_free: no state reads −γ⊙b⊙k any more.
      state_free: no state reads the other operands any more.
      seen: the outputs are summed, and content is there.
      projections: those of the content gate have come.
    """

    solver_filled: Any
    state_filled: Any
    value_filled: Any
    erased: Any
    solved: Any
    erased_free: Any
    state_free: Any
    seen: Any
    projections: Any


def scratch(sizes: Sizes) -> tuple[Any, ...]:
    """Shared memory and barriers of a program; for the first axis see `_Scan.of_a_turn`."""
    rows = sizes.channels
    shared = Shared(
        levels=operand_memory(1, LEVELS, TILE, rows),
        logits=operand_memory(1, TILE, rows),
        keys=operand_memory(1, TILE, rows),
        query=operand_memory(1, TILE, rows),
        to_end=operand_memory(1, TILE, rows),
        pairs=operand_memory(1, TILE, TILE),
        write=plgpu.SMEM((1, TILE), BF16),
        ends=plgpu.SMEM((1, rows), F32),
        value=operand_memory(1, sizes.states, TILE, BLOCK),
        block=operand_memory(1, TILE, TILE),
        inner=operand_memory(1, TILE, TILE),
        down=operand_memory(1, 2 * RANK, sizes.width),
        up=operand_memory(1, 2 * rows, RANK),
        content=plgpu.SMEM((1, sizes.width), F32),
    )
    one = plgpu.Barrier
    barriers = Barriers(
        solver_filled=one(num_arrivals=LEVELS + 2),
        state_filled=one(num_arrivals=5),
        value_filled=one(num_barriers=sizes.states),
        erased=one(),
        solved=one(),
        erased_free=one(num_arrivals=sizes.states),
        state_free=one(num_arrivals=sizes.states),
        seen=one(num_arrivals=sizes.states),
        projections=one(num_arrivals=2),
    )
    return shared, barriers


class _Scan(NamedTuple):
    """What the steps of a program share."""

    sizes: Sizes
    at: Program
    x: Inputs
    out: Outputs
    shared: Shared
    barriers: Barriers

    def of_a_turn(self) -> "_Scan":
        """The same with views of the shared memory whose addresses are known in this turn of the
        loop alone: those of every product would else be found before it, and spilled."""
        zero = jax.lax.optimization_barrier(jnp.int32(0))
        return self._replace(shared=Shared(*(ref.at[zero] for ref in self.shared)))

    @property
    def key_head(self) -> Any:
        """Head of the scores."""
        return jax.lax.div(self.at.head, self.sizes.value_heads // self.sizes.key_heads)

    def part(self, tile: Any) -> Any:
        """Rows of a tile in arrays of the part."""
        return pl.ds(tile * TILE, TILE)

    def whole(self, tile: Any) -> Any:
        """Rows of a tile in arrays of the sequence."""
        return pl.ds(self.sizes.first + tile * TILE, TILE)

    def tiles(self, tile: Any, place: int) -> Any:
        """One of the arrays that lie side by side in `Inputs.tiles`."""
        columns = pl.ds(place * self.sizes.channels, self.sizes.channels)
        return self.x.tiles.at[self.at.row, self.part(tile), self.key_head, columns]


def _fetch_levels(scan: _Scan, tile: Any) -> None:
    """Ask for what the solver alone reads."""
    copy = functools.partial(plgpu.copy_gmem_to_smem, barrier=scan.barriers.solver_filled)
    sizes, at = scan.sizes, scan.at
    head = jax.lax.div(at.head, sizes.value_heads // sizes.erase_heads)
    copy(scan.x.logits.at[at.row, scan.whole(tile), head], scan.shared.logits)
    for level in range(LEVELS):
        copy(scan.tiles(tile, K_LEVELS + level), scan.shared.levels.at[level])


def _fetch_keys(scan: _Scan, tile: Any) -> None:
    """Ask for γ⊙k, in whose place the states read −γ⊙b⊙k."""
    keys = scan.tiles(tile, BK_DECAYED)
    plgpu.copy_gmem_to_smem(keys, scan.shared.keys, scan.barriers.solver_filled)


def _fetch_state(scan: _Scan, tile: Any) -> None:
    """Ask for what the states share."""
    copy = functools.partial(plgpu.copy_gmem_to_smem, barrier=scan.barriers.state_filled)
    at, x, shared = scan.at, scan.x, scan.shared
    copy(scan.tiles(tile, Q_DECAYED), shared.query)
    copy(scan.tiles(tile, K_TO_END), shared.to_end)
    squares = x.squares.at[at.row, scan.part(tile), scan.key_head, pl.ds(0, TILE)]
    copy(squares, shared.pairs)
    copy(x.write.at[at.row, at.head, scan.whole(tile)], shared.write)
    copy(x.ends.at[at.row, tile, scan.key_head], shared.ends)


def _fetch_value(scan: _Scan, tile: Any) -> None:
    """Ask for v of a state's channels."""
    at = scan.at
    value = scan.x.value.at[at.row, scan.whole(tile), at.head, at.channels]
    plgpu.copy_gmem_to_smem(
        value, scan.shared.value.at[at.group], scan.barriers.value_filled.at[at.group]
    )


def _product(scan: _Scan, pairs: Any, columns: int = TILE, start: Array | None = None) -> Array:
    """start + the sum of the products a b of pairs, [C, columns]."""
    return multiply(pairs, (TILE, columns), scan.sizes.interpret, start)


def _halves(x: Array) -> tuple[Array, Array]:
    """x float32 as the sum of two bfloat16."""
    first = x.astype(BF16)
    return first, (x - first.astype(F32)).astype(BF16)


def _low_rank(scan: _Scan) -> tuple[Array, Array]:
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


def _gate(scan: _Scan, low_rank: tuple[Array, Array]) -> None:
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


def _minus_system(scan: _Scan) -> Array:
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


def _invert(scan: _Scan, system: Array) -> None:
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


def _solve(whole: _Scan, tiles: int) -> None:
    """The warpgroup that solves, over all tiles."""
    scan = whole.of_a_turn()
    at, x, barriers = scan.at, scan.x, scan.barriers
    plgpu.copy_gmem_to_smem(x.down.at[at.head], scan.shared.down, barriers.projections)
    plgpu.copy_gmem_to_smem(x.up.at[at.head], scan.shared.up, barriers.projections)
    _fetch_levels(scan, 0)
    _fetch_keys(scan, 0)
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
            _fetch_levels(scan, tile + 1)

        _invert(scan, system)
        plgpu.barrier_arrive(barriers.solved)
        plgpu.barrier_wait(barriers.erased_free)
        plgpu.commit_smem()  # what was read there comes before what is copied there

        @pl.when(tile + 1 < tiles)
        def _() -> None:
            _fetch_keys(scan, tile + 1)

        plgpu.barrier_wait(barriers.seen)

    jax.lax.fori_loop(0, tiles, step, None)


def _written(scan: _Scan) -> Array:
    """(v ⊙ w)ᵀ [64, C] float32."""
    value = load(transposed(scan.shared.value.at[scan.at.group])).astype(F32)
    return value * along_rows(load(scan.shared.write, ROW).astype(F32), (BLOCK, TILE))


def _advance(scan: _Scan, memory: Array, put: Any) -> tuple[Array, Any]:
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


def _carry(whole: _Scan, tiles: int) -> None:
    """A warpgroup that holds a state, over all tiles."""
    scan = whole.of_a_turn()
    sizes, at, x, out, barriers = scan.sizes, scan.at, scan.x, scan.out, scan.barriers

    @pl.when(at.group == 0)
    def _() -> None:
        _fetch_state(scan, 0)

    _fetch_value(scan, 0)

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
            _fetch_state(scan, tile + 1)

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

        @pl.when(tile + 1 < tiles)
        def _() -> None:
            _fetch_value(scan, tile + 1)

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
    scan = _Scan(sizes, at, x, out, shared, barriers)
    tiles = sizes.length // TILE

    @pl.when(group == sizes.states)
    def _() -> None:
        _solve(scan, tiles)

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
