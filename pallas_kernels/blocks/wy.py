"""Mathematics of one tile of C tokens as functions of arrays: products, order, the inverse.

No reference to memory here, and no instruction of one device: any backend that can multiply, mask
and select blocks can call these.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
ABOVE = 127


def unchanged(x: Array) -> Array:
    """x itself, without a fence."""
    return x


class Product(NamedTuple):
    """Matrix product of blocks with float32 accumulation.

    Attributes:
      precision: of the operands: "bf16", "tf32", "tf32x3" or "f32".
      emulated: running outside Triton (interpret mode): operands but those of bf16, which are
        rounded, are then exact float32.
      fence: put around an operand that is to be transposed, where a compiler would else move the
        transposition up through what made it and compute that twice.
    """

    precision: str
    emulated: bool = False
    fence: Callable[[Array], Array] = unchanged

    def __call__(self, a: Array, b: Array, *, ta: bool = False, tb: bool = False) -> Array:
        """a b, either transposed first if asked."""
        dims = (((0 if ta else 1,), (1 if tb else 0,)), ((), ()))
        a, b = a.astype(self.dtype), b.astype(self.dtype)
        a, b = self.fence(a) if ta else a, self.fence(b) if tb else b
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
        """The dtype of the operands."""
        return jnp.dtype(jnp.bfloat16 if self.precision == "bf16" else jnp.float32)


def order(tile: int, zero: Array | int = 0) -> Array:
    """[C, C]: r ^ c below the diagonal, 0 on it, `ABOVE` above.

    An entry belongs to level h iff its value lies in [h, 2h): one tile of integers replaces a mask
    for each level. C is 64 at most. `zero` is a zero that the compiler does not know, loaded where
    the tile is used; it keeps the masks from being hoisted out of the loop over tiles and spilled.
    """
    row = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 0) + zero
    column = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 1)
    return jnp.where(row >= column, row ^ column, ABOVE)


def unit_inverse(
    product: Product,
    system: Array,
    ordered: Array,
    tile: int,
    corner: Callable[[Array, Array, int], Array],
    corrected: bool,
) -> Array:
    """(I + T)⁻¹ of the tiles on the diagonal of a square, by doubling: D_2h = D_h − D_h T_h D_h.

    D_h is the inverse of the blocks of h tokens; D_h T_h D_h lives on level h alone, where D_h is
    still zero. No power of T is formed, so correlated keys cost no accuracy beyond rounding.

    Args:
      product: of the blocks.
      system: T float32, zero outside the tiles' strictly lower triangles.
      ordered: `order` of the square.
      tile: C.
      corner: gives −T on a level, zero elsewhere, of T as an operand, `ordered` and log2 h.
      corrected: one step A + A (I − (I + T) A) follows, with T in two halves, which takes the
        rounding of bfloat16 products out of A (correlated keys: error 1.1e-2 to 1.8e-3).

    Returns:
      A in the products' dtype.
    """
    operand = product.operand
    rounded = operand(system)
    inverse = jnp.where(ordered == 0, 1.0, jnp.where(ordered == 1, -system, 0.0))
    for level in range(1, tile.bit_length() - 1):
        block = operand(inverse)
        inner = operand(product(corner(rounded, ordered, level), block))
        inverse = inverse + product(block, inner)
    if not corrected:
        return operand(inverse)
    block = operand(inverse)
    wide = block.astype(jnp.float32)
    rest = operand(system - rounded.astype(jnp.float32))
    residual = product(rounded, block) + product(rest, block)
    residual = residual + wide - jnp.where(ordered == 0, 1.0, 0.0)
    return operand(wide - product(block, operand(residual)))
