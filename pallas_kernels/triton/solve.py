"""(I + T)⁻¹ of one tile inside a scan, applied to a right-hand side that is held transposed.

Everything is transposed, U = Tᵀ strictly above the diagonal: R and what it is found of are [V, C],
so that Aᵀ and Uᵀ enter products as they are. Levels are a loop's index: half the code, and Triton
shares the columns of a product at a loop's end among warps, where it has each of two warpgroups do
all of a product that another follows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.blocks import wy
from pallas_kernels.blocks.wy import Array, Product
from pallas_kernels.triton import ptx, ptx_scan
from pallas_kernels.triton.plan import Plan
from pallas_kernels.triton.span import K_LEVELS


class Solver(NamedTuple):
    """What finds X (I + T)⁻ᵀ.

    Attributes:
      inverse: Aᵀ [C, C] as an operand.
      system: −(I + T)ᵀ [C, C] in operands whose sum it is, for one correction; empty for none.
    """

    inverse: Array
    system: tuple

    def __call__(self, product: Product, x: Array) -> Array:
        """x Aᵀ of x [V, C] float32; the correction takes the rounding of A out of it."""
        found = product(x, self.inverse)
        if not self.system:
            return found
        rounded, wide = ptx_scan.rounded(found)
        for piece in self.system:
            x = x + product(rounded, piece)
        return wide + product(x, self.inverse)


def _levels(count: int, visit: Any, carry: Any) -> Any:
    return jax.lax.fori_loop(0, count, visit, carry) if count else carry


def solver(plan: Plan, tiles: Any, here: Any, minus: Array, zero: Array) -> Solver:
    """The solver of one tile.

    Args:
      plan: what is static.
      tiles: `Scores.tiles`, with the keys under the factors of each level.
      here: rows of the tile.
      minus: −b [C, K] as an operand.
      zero: see `wy.order`.
    """
    tile, channels = minus.shape
    ordered = order(tile, zero)

    def found(rows: Any, columns: Any) -> Array:
        rows = ptx.times(minus, tiles[here, pl.ds((K_LEVELS + rows) * channels, channels)])
        columns = tiles[here, pl.ds((K_LEVELS + columns) * channels, channels)]
        return plan.product(columns, rows, tb=True)

    def add_level(place: Any, system: Array) -> Array:
        return jnp.where(ordered < (2 << plan.levels[0]) >> place, found(place, place), system)

    system = jnp.zeros((tile, tile), jnp.float32)
    if plan.levels:
        system = jax.lax.fori_loop(0, len(plan.levels), add_level, system)
    if plan.anchor > 1:
        place = len(plan.levels)

        def add_anchored(system: Array) -> Array:
            return jnp.where(ordered < plan.anchor, found(place, place + 1), system)

        system = once(add_anchored, zero, system)
    return invert(plan, system, ordered, zero)


def invert(plan: Plan, system: Array, ordered: Array, zero: Array) -> Solver:
    """Doubling as in `wy.unit_inverse`, of −U [C, C] float32, whose diagonal may hold anything."""
    product = plan.inverse
    operand = product.operand
    rounded, rest, inverse = ptx_scan.begin_inverse(system, ordered, product.dtype)
    block = operand(inverse)

    def add(carry: tuple, inner: Array) -> tuple:
        block, inverse = carry
        inverse = inverse + product(block, inner)
        return operand(inverse), inverse

    for level in range(1, system.shape[0].bit_length() - 1):
        corner = ptx_scan.level(rounded, ordered, 1 << level)
        inner = once(lambda c, d=block: operand(product(c, d)), zero, corner)
        block, inverse = once(lambda c, n=inner: add(c, n), zero, (block, inverse))
    return Solver(block, (rounded, rest) if plan.tiles.inverse == "bf16" else ())


def once(visit: Any, zero: Array, carry: Any) -> Any:
    """visit(carry), in a loop of one turn.

    Triton reads the first operand of a product from shared memory where it is loaded or a loop's
    own, and from registers otherwise; and it gives each of two warpgroups all of a product with 64
    rows where another product follows in the same loop. LLVM takes the loop away.
    """
    turns = (zero | 1) & 1  # LLVM knows that this is 1; Triton does not
    return jax.lax.fori_loop(0, turns, lambda _, c: visit(c), carry)


def order(tile: int, zero: Array) -> Array:
    """`wy.order`, transposed."""
    row = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 0) + zero
    column = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 1)
    return jnp.where(row <= column, row ^ column, wy.ABOVE)
