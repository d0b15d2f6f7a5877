"""What the sequence kernels share: the static plan of a call, its operands and their views."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.blocks import decay, wy
from pallas_kernels.blocks.wy import Array, Product
from pallas_kernels.tiling import Tiles
from pallas_kernels.triton import ptx


class Gate(NamedTuple):
    """Settings of the content gate.

    Attributes:
      tiles: tiles that a gate chunk is cut into.
      scale: erase_scale.
      stop_gradient: no gradient through the content.
      norm_eps: added to the mean square by whose root content is divided; None for no norm.
      channels: V before padding, over which that mean is taken.
      dtype: to which b is rounded.
    """

    tiles: int
    scale: float
    stop_gradient: bool
    norm_eps: float | None
    channels: int
    dtype: str


class Plan(NamedTuple):
    """What is static about a call.

    The sequence is worked off in parts, one after another, so that what a tile needs besides its
    inputs never exists for the whole sequence.

    Attributes:
      tiles: the cut.
      scale: factor of the query.
      parts: number of parts, each whole spans and whole gate chunks.
      gate: a `Gate`, or None for the plain rule.
      anchor: A, tokens of the blocks whose levels are done at once, for a floor that has been
        promised of g; 1 for none.
      by_chunk: each part is one gate chunk: b is known before it is scanned.
      stretches: that each part of the plain rule is cut into; see `stretches`.
      interpret: run without a GPU.
      forward_scan: another backend's function in place of `scan.scan` where nothing is replayed, or
        None.
      backward_scan: another backend's function in place of `scan_backward.scan_backward`, or None.
    """

    tiles: Tiles
    scale: float
    parts: int = 1
    gate: Any = None
    anchor: int = 1
    by_chunk: bool = False
    stretches: int = 1
    interpret: bool = False
    forward_scan: Any = None
    backward_scan: Any = None

    @property
    def solves(self) -> bool:
        """The scan finds the inverses."""
        return (self.gate is not None and not self.by_chunk) or self.tiles.solve == "walk"

    @property
    def product(self) -> Product:
        """Products with states, scores and gradients."""
        return Product(self.tiles.product, self.interpret, ptx.fence)

    @property
    def unfenced(self) -> Product:
        """The same of operands that `ptx` made, whose bfloat16 forms are fences themselves: another
        would cost instructions."""
        fence = wy.unchanged if self.tiles.product == "bf16" else ptx.fence
        return Product(self.tiles.product, self.interpret, fence)

    @property
    def inverse(self) -> Product:
        """Products inside the inverse."""
        return Product(self.tiles.inverse, self.interpret, ptx.fence)

    @property
    def distance(self) -> Product:
        """Products with the matrices of `decay`."""
        return Product("bf16", self.interpret)

    @property
    def pieces(self) -> int:
        """bfloat16 pieces of what is multiplied by the matrices of `decay`."""
        return 2 if self.tiles.product == "bf16" else 3

    @property
    def levels(self) -> list[int]:
        """log2 of the dyadic levels, largest first."""
        return decay.levels(self.tiles.chunk, self.anchor)

    @property
    def key_tiles(self) -> int:
        """Tiles of decayed keys that a scan which solves needs: one per level, in their order, then
        the rows and the columns of the anchored blocks."""
        return len(self.levels) + (2 if self.anchor > 1 else 0)

    def compile_options(self, warps: int, stages: int = 1) -> dict[str, Any]:
        """Keywords of `pallas_call`; without CompilerParams some versions choose Mosaic."""
        params = plgpu.CompilerParams(num_warps=warps, num_stages=stages)
        return {"compiler_params": params, "interpret": self.interpret}


def summed(plan: Plan, matrix: Array, pieces: list[Array]) -> Array:
    """A matrix of `decay` times what the pieces add up to, float32."""
    found = plan.distance(matrix, pieces[0])
    for piece in pieces[1:]:
        found = found + plan.distance(matrix, piece)
    return found


class Operands(NamedTuple):
    """Inputs of the kernels, lengths padded to whole tiles and channels to powers of two.

    Attributes:
      query, key: [B, T, H, K].
      value: [B, T, N, V].
      log_decay: [B, T, H, K or 1].
      erase: b [B, T, H or N, K or 1], or its logits under a content gate; for the span kernel None
        where b is not known before the scan.
      write: [B, T, N, V or 1].
    """

    query: Any
    key: Any
    value: Any
    log_decay: Any
    erase: Any
    write: Any


class Content(NamedTuple):
    """Arrays of the content gate, over one part of the sequence.

    Attributes:
      down: P_down [N, V, R] float32.
      up: P_up [N, R, K] float32.
      content: of the part's first gate chunk [B, N, V] float32.
      partial_sum: of that chunk's outputs before the part [B, N, V] float32.
      mean: [B, chunks] float32, what makes the content of the next chunk of a chunk's sum: 1/L,
        or 0 where the next one starts a segment.
    """

    down: Any
    up: Any
    content: Any
    partial_sum: Any
    mean: Any


def rows(ref: Any, start: Array | int, count: int) -> Array:
    """Rows of a [T, X] view in float32."""
    return ref[pl.ds(start, count), :].astype(jnp.float32)


class Cut(NamedTuple):
    """Stretches of a part that a launch scans side by side, each as if it were a row.

    Attributes:
      stretches: equal ones that the part is cut into.
      first, number: of those that the launch scans; row b · number + i is stretch first + i of b.
    """

    stretches: int = 1
    first: int = 0
    number: int = 1

    def place(self, row: Any, part: int = 0) -> tuple:
        """Row of the arrays, and which of all stretches along its tokens, of a row of a launch."""
        if self.stretches == 1:
            return row, part
        stretch = part * self.stretches + self.first + jax.lax.rem(row, self.number)
        return jax.lax.div(row, self.number), stretch


WHOLE = Cut()


def view(
    a: Any, heads: int, length: int, part: int = 0, block: int | None = None, cut: Cut = WHOLE
) -> pl.BlockSpec:
    """What a program (b, n, v) sees of a [B, T, H, X]: its stretch of the part's `length` rows of
    its head, all channels or the v-th block of them. An array of `length` rows is the part's own.
    Value head n reads key head n // (N // H)."""
    repeat, width = heads // a.shape[2], a.shape[3]
    part = part if a.shape[1] > length else 0
    rows = length // cut.stretches
    if block is None or width == 1:
        shape, column = (None, rows, None, width), lambda v: 0
    else:
        shape, column = (None, rows, None, block), lambda v: v
    return pl.BlockSpec(
        shape, lambda b, n, v: (*cut.place(b, part), jax.lax.div(n, repeat), column(v))
    )


def memory_view(a: Any, block: int, cut: Cut = WHOLE) -> pl.BlockSpec:
    """What a program (b, n, v) sees of [B, N, V, K], B rows of a launch, or of one such for each
    tile of the part."""
    if len(a.shape) == 4:
        return pl.BlockSpec((None, None, block, a.shape[3]), lambda b, n, v: (b, n, v, 0))
    shape = (None, a.shape[1] // cut.stretches, None, block, a.shape[4])
    return pl.BlockSpec(shape, lambda b, n, v: (*cut.place(b), n, v, 0))
