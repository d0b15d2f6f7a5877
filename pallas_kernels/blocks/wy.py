"""Mathematics of one tile of C tokens as functions of arrays: safe decayed products, their inverse.

The strictly lower triangle of a tile is cut dyadically: at level h = 1, 2, …, C/2 the rows in the
upper half of each block of 2h tokens meet the columns in its lower half, and both measure their
decay from the row between the halves. Rows and columns of a level are disjoint, so one tile of
factors exp(−|G − G_ref|) ≤ 1 serves both operands, for every g ≤ 0. Where the caller has proven
g ≥ −10 the levels below 16 may be done at once, measured from the middle of blocks of 16.

No reference to memory here: distances to other rows are handed in. Any backend that can multiply,
mask and exponentiate blocks can call these.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ANCHOR = 16
LOWEST_ANCHORED = -10.0  # 8 tokens to the anchor: every exponent within ±80
LOWEST_DECAY = -128.0  # exp gives 0 in float32 already: keeps sums over a tile small

Array = jax.Array


class Product(NamedTuple):
    """Matrix product of blocks with float32 accumulation.

    Attributes:
      precision: of the operands: "bf16", "tf32", "tf32x3" or "f32".
      emulated: running outside Triton (interpret mode): operands but those of bf16, which are
        rounded, are then exact float32.
    """

    precision: str
    emulated: bool = False

    def __call__(self, a: Array, b: Array, *, ta: bool = False, tb: bool = False) -> Array:
        """a b, either transposed first if asked."""
        dims = (((0 if ta else 1,), (1 if tb else 0,)), ((), ()))
        a, b = a.astype(self.dtype), b.astype(self.dtype)
        if self.precision == "bf16" and not self.emulated:
            return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
        precision: Any = {
            "tf32": jax.lax.DotAlgorithmPreset.TF32_TF32_F32,
            "tf32x3": jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
            "f32": jax.lax.Precision.HIGHEST,
        }["f32" if self.emulated else self.precision]
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)  # not every CPU multiplies bfloat16
        return jax.lax.dot_general(
            a, b, dims, precision=precision, preferred_element_type=jnp.float32
        )

    def operand(self, x: Array) -> Array:
        """x as it enters a product: what to round before it is kept."""
        return x.astype(self.dtype)

    @property
    def dtype(self) -> jnp.dtype:
        """Of the operands."""
        return jnp.dtype(jnp.bfloat16 if self.precision == "bf16" else jnp.float32)


def order(tile: int, zero: Array | int = 0) -> Array:
    """[C, C]: r ^ c below the diagonal, 0 on it, −1 above.

    An entry belongs to level h iff its value lies in [h, 2h): one tile of integers replaces a mask
    a level. `zero` is a zero that the compiler does not know, loaded where the tile is used; it
    keeps the masks from being hoisted out of the loop over tiles and spilled.
    """
    row = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 0) + zero
    column = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 1)
    return jnp.where(row >= column, row ^ column, -1)


class Level(NamedTuple):
    """One part of the strictly lower triangle: entries with low ≤ `order` < high."""

    low: Array | int
    high: Array | int

    def pick(self, scores: Array, ordered: Array) -> Array:
        """The level's entries of a square tile, zero elsewhere."""
        inside = (ordered >= self.low) & (ordered < self.high)
        return jnp.where(inside, scores, jnp.zeros((), scores.dtype))


def levels(tile: int, anchored: bool) -> list[Level]:
    """The levels of tiles of C tokens, smallest first."""
    dyadic = [Level(1 << i, 2 << i) for i in range(tile.bit_length() - 1)]
    if not anchored:
        return dyadic
    return [Level(1, ANCHOR), *(level for level in dyadic if level.low >= ANCHOR)]


def factor(distance: Array) -> Array:
    """Decay of a dyadic level [C, K or 1], for rows and columns alike, from the log-decay between
    each token and the row at the end of the lower half of its block of 2h."""
    return jnp.exp(-jnp.abs(distance))


def anchored_factors(distance: Array) -> tuple[Array, Array]:
    """Decay of rows and of columns within blocks of 16 from the log-decay between each token and
    the eighth of its block; in range only where g ≥ LOWEST_ANCHORED."""
    return jnp.exp(distance), jnp.exp(-distance)


def unit_inverse(
    product: Product, system: Callable[[Array | int], Array], tile: int, ordered: Array, loop: bool
) -> Array:
    """(I + T)⁻¹ of the tiles on the diagonal of a square, by doubling: D_2h = D_h − D_h T_h D_h.

    D_h is the inverse of the blocks of h tokens; D_h T_h D_h lives on level h alone, where D_h is
    still zero. No power of T is formed, so correlated keys cost no accuracy.

    Args:
      product: of the blocks.
      system: gives T_h for h = 1, 2, 4, …, C/2, zero outside its level.
      tile: C.
      ordered: `order` of the square.
      loop: as a loop in the program (small), else unrolled (inside another loop, whose loads could
        otherwise not be overlapped).
    """

    def double(i: Array | int, inverse: Array) -> Array:
        block = product.operand(system(2 << i))
        corner = product(inverse, product.operand(product(block, inverse)))
        return inverse - product.operand(corner)

    inverse = product.operand(jnp.where(ordered == 0, 1.0, -system(1)))
    steps = tile.bit_length() - 2
    if loop:
        return jax.lax.fori_loop(0, steps, double, inverse)
    for i in range(steps):
        inverse = double(i, inverse)
    return inverse
