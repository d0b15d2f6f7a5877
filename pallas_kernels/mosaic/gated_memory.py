"""What CARVE's scan reads and writes, and where it lies while it is worked on.

Operands have one place each in shared memory, and a tile's are asked for as soon as those before it
have been read.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic.backend import RANK
from pallas_kernels.mosaic.parts import BF16, BLOCK, F32, TILE, Program, operand_memory
from pallas_kernels.triton.plan import Gate
from pallas_kernels.triton.span import BK_DECAYED, K_LEVELS, K_TO_END, Q_DECAYED

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
    """Shared memory and barriers of a program; for the first axis see `Scan.of_a_turn`."""
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


class Scan(NamedTuple):
    """What the steps of a program share."""

    sizes: Sizes
    at: Program
    x: Inputs
    out: Outputs
    shared: Shared
    barriers: Barriers

    def of_a_turn(self) -> "Scan":
        """The scan with views of the shared memory whose addresses are known in this turn of the
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


def fetch_levels(scan: Scan, tile: Any) -> None:
    """Ask for what the solver alone reads."""
    copy = functools.partial(plgpu.copy_gmem_to_smem, barrier=scan.barriers.solver_filled)
    sizes, at = scan.sizes, scan.at
    head = jax.lax.div(at.head, sizes.value_heads // sizes.erase_heads)
    copy(scan.x.logits.at[at.row, scan.whole(tile), head], scan.shared.logits)
    for level in range(LEVELS):
        copy(scan.tiles(tile, K_LEVELS + level), scan.shared.levels.at[level])


def fetch_keys(scan: Scan, tile: Any) -> None:
    """Ask for γ⊙k, in whose place the states read −γ⊙b⊙k."""
    keys = scan.tiles(tile, BK_DECAYED)
    plgpu.copy_gmem_to_smem(keys, scan.shared.keys, scan.barriers.solver_filled)


def fetch_state(scan: Scan, tile: Any) -> None:
    """Ask for what the states share."""
    copy = functools.partial(plgpu.copy_gmem_to_smem, barrier=scan.barriers.state_filled)
    at, x, shared = scan.at, scan.x, scan.shared
    copy(scan.tiles(tile, Q_DECAYED), shared.query)
    copy(scan.tiles(tile, K_TO_END), shared.to_end)
    squares = x.squares.at[at.row, scan.part(tile), scan.key_head, pl.ds(0, TILE)]
    copy(squares, shared.pairs)
    copy(x.write.at[at.row, at.head, scan.whole(tile)], shared.write)
    copy(x.ends.at[at.row, tile, scan.key_head], shared.ends)


def fetch_value(scan: Scan, tile: Any) -> None:
    """Ask for v of a state's channels."""
    at = scan.at
    value = scan.x.value.at[at.row, scan.whole(tile), at.head, at.channels]
    plgpu.copy_gmem_to_smem(
        value, scan.shared.value.at[at.group], scan.barriers.value_filled.at[at.group]
    )
