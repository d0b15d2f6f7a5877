"""Mathematics of one tile of C tokens, C a power of two: safe decayed products and their gradients.

The scores S_rs = Σ_k a_rk c_sk exp(g_{s+1,k} + … + g_r,k), s < r, hold a decay for each pair of
tokens and channel. Factoring it as exp(G_r) exp(−G_s) overflows. Here the strict lower triangle is
cut dyadically: at level h each block of 2h tokens pairs the tokens of its upper half (rows) with
those of its lower half (columns), and both are measured from the boundary between the halves,

    exp(Σ_{boundary<i≤r} g_i) · exp(Σ_{s<i≤boundary} g_i),

two factors of at most 1 for every g ≤ 0. The sums are built by doubling, so no small decay is ever
found as the difference of two large ones.

All arrays carry leading batch axes; imported by `chunked` and `scan` alone.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import Precision

from carve_jax.shapes import Array, Float32

Halves = list[Float32[Array, "*tiles _ _ _"]]
"""For each level h = 1, 2, …, C/2 one half of every block [*tiles, C/2h, h, K], or the scores of
its halves with each other [*tiles, C/2h, h, h]."""


class Decay(NamedTuple):
    """Decay factors inside a tile, all in [0, 1].

    Attributes:
      upper: for each level, from the middle of a block to each token of its upper half.
      lower: for each level, from each token of a lower half to the middle of its block.
      start: γ, from the start of the tile to each token.
      tail: γ_C / γ, from each token to the end of the tile.
      total: γ_C, over the tile.
    """

    upper: Halves
    lower: Halves
    start: Float32[Array, "*tiles C K"]
    tail: Float32[Array, "*tiles C K"]
    total: Float32[Array, "*tiles K"]


def matmul(subscripts: str, *operands: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Float32 product with float32 accumulation on every device (no tf32)."""
    return jnp.einsum(subscripts, *operands, precision=Precision.HIGHEST)


def split(
    x: Float32[Array, "*tiles C X"], h: int
) -> tuple[Float32[Array, "*tiles C//(2*{h}) {h} X"], Float32[Array, "*tiles C//(2*{h}) {h} X"]]:
    """Lower and upper halves of each block of 2h tokens."""
    blocks = x.reshape(*x.shape[:-2], x.shape[-2] // (2 * h), 2, h, x.shape[-1])
    return blocks[..., 0, :, :], blocks[..., 1, :, :]


def join(
    lower: Float32[Array, "*tiles blocks h X"], upper: Float32[Array, "*tiles blocks h X"]
) -> Float32[Array, "*tiles 2*blocks*h X"]:
    """Inverse of `split`."""
    blocks = jnp.stack([lower, upper], axis=-3)
    return blocks.reshape(*blocks.shape[:-4], -1, blocks.shape[-1])


def level_sizes(tile: int) -> list[int]:
    """1, 2, 4, …, C/2."""
    return [1 << level for level in range(tile.bit_length() - 1)]


def decay_factors(log_decay: Float32[Array, "*tiles C K"]) -> Decay:
    """Every decay factor of a tile from its log-decays."""
    prefix, suffix = log_decay, jnp.zeros_like(log_decay)  # inside blocks of one token
    upper, lower = [], []
    for h in level_sizes(log_decay.shape[-2]):
        (prefix_lower, prefix_upper), (suffix_lower, suffix_upper) = (
            split(prefix, h),
            split(suffix, h),
        )
        upper.append(jnp.exp(prefix_upper))
        lower.append(jnp.exp(suffix_lower))
        prefix = join(prefix_lower, prefix_upper + prefix_lower[..., -1:, :])
        suffix = join(suffix_lower + prefix_upper[..., -1:, :], suffix_upper)
    start = jnp.exp(prefix)
    return Decay(upper, lower, start, jnp.exp(suffix), start[..., -1, :])


def upper_halves(x: Float32[Array, "*tiles C K"], decay: Decay) -> Halves:
    """Rows of the scores at each level, decayed."""
    return [split(x, f.shape[-2])[1] * f for f in decay.upper]


def lower_halves(x: Float32[Array, "*tiles C K"], decay: Decay) -> Halves:
    """Columns of the scores at each level, decayed."""
    return [split(x, f.shape[-2])[0] * f for f in decay.lower]


def score_levels(rows: Halves, columns: Halves) -> Halves:
    """Strictly lower decayed products, level by level: […, C/2h, h, h].

    Level 1 comes as pairs [[0, 0], [s, 0]]: XLA fuses a product of two vectors with whatever made
    them, and the bits would then depend on whether it stands in a loop.
    """
    row, column = rows[0], columns[0]
    row = jnp.concatenate([jnp.zeros_like(row), row], axis=-2)
    column = jnp.concatenate([column, jnp.zeros_like(column)], axis=-2)
    operands = zip([row, *rows[1:]], [column, *columns[1:]], strict=True)
    return [matmul("...rk,...sk->...rs", r, c) for r, c in operands]


def scores(
    rows: Halves, columns: Halves, diagonal: Float32[Array, "*tiles C"]
) -> Float32[Array, "*tiles C C"]:
    """The lower triangle of the decayed products, with their diagonal."""
    pairs, *levels = score_levels(rows, columns)
    matrix = pairs + diagonal.reshape(*diagonal.shape[:-1], -1, 2, 1) * _eye(pairs)
    for block in levels:
        matrix = _quadrants(matrix[..., 0::2, :, :], block, matrix[..., 1::2, :, :])
    return matrix[..., 0, :, :]


def unit_inverse(rows: Halves, columns: Halves) -> Float32[Array, "*tiles C C"]:
    """(I + T)⁻¹ for the strictly lower scores T: blocks double at each level,
    [[A, 0], [−B X A, B]] being the inverse of [[A⁻¹, 0], [X, B⁻¹]]."""
    pairs, *levels = score_levels(rows, columns)
    inverse = _eye(pairs) - pairs
    for block in levels:
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = matmul("...ij,...jk->...ik", matmul("...ij,...jk->...ik", second, block), first)
        inverse = _quadrants(first, -corner, second)
    return inverse[..., 0, :, :]


def _eye(like: Array) -> Array:
    eye = jnp.eye(like.shape[-1], dtype=like.dtype)
    return eye.reshape((1,) * (like.ndim - 2) + eye.shape)


def _quadrants(upper_left: Array, lower_left: Array, lower_right: Array) -> Array:
    top = jnp.concatenate([upper_left, jnp.zeros_like(upper_left)], axis=-1)
    bottom = jnp.concatenate([lower_left, lower_right], axis=-1)
    return jnp.concatenate([top, bottom], axis=-2)


def score_blocks(matrix: Float32[Array, "*tiles C C"]) -> Halves:
    """The blocks […, C/2h, h, h] of a lower triangle at each level: `scores` undone."""
    blocks = []
    matrix = matrix[..., None, :, :]
    for h in reversed(level_sizes(matrix.shape[-1])):
        blocks.append(matrix[..., h:, :h])
        matrix = jnp.stack([matrix[..., :h, :h], matrix[..., h:, h:]], axis=-3)
        matrix = matrix.reshape(*matrix.shape[:-4], -1, h, h)
    return blocks[::-1]


def rows_gradient(blocks: Halves, columns: Halves) -> Halves:
    """Gradient of the decayed rows from that of the scores' blocks."""
    return [matmul("...rs,...sk->...rk", b, c) for b, c in zip(blocks, columns, strict=True)]


def columns_gradient(blocks: Halves, rows: Halves) -> Halves:
    """Gradient of the decayed columns from that of the scores' blocks."""
    return [matmul("...rs,...rk->...sk", b, r) for b, r in zip(blocks, rows, strict=True)]


def sum_upper(halves: Halves, factors: Halves) -> Float32[Array, "*tiles C K"]:
    """Transpose of `upper_halves`: Σ over levels."""
    terms = (h * f for h, f in zip(halves, factors, strict=True))
    return functools.reduce(jnp.add, [join(jnp.zeros_like(t), t) for t in terms])


def sum_lower(halves: Halves, factors: Halves) -> Float32[Array, "*tiles C K"]:
    """Transpose of `lower_halves`: Σ over levels."""
    terms = (h * f for h, f in zip(halves, factors, strict=True))
    return functools.reduce(jnp.add, [join(t, jnp.zeros_like(t)) for t in terms])


def reverse_sum(x: Float32[Array, "*tiles C K"]) -> Float32[Array, "*tiles C K"]:
    """Σ_{r ≥ i} x_r over the tokens of a tile."""
    later = jnp.triu(jnp.ones((x.shape[-2], x.shape[-2]), x.dtype))
    return matmul("ir,...rk->...ik", later, x)
