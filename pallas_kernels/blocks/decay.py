"""Log-decay distances within a span as products with matrices of zeros and ones.

The strictly lower triangle of a tile is cut dyadically: at level h = 1, 2, …, C/2 the rows in the
upper half of each block of 2h tokens meet the columns in its lower half, and both measure their
decay from the boundary between the halves. The distance of a token is then a sum of log-decays
that a 0/1 matrix takes from g in one product: no row of G is gathered, nothing cancels (a hard
reset of −1000 costs the small decays beside it no digit), every exponent is ≤ 0, and a row's
distance knows no token after it. One tile of factors serves the rows and the columns of a level.

Where g ≥ floor is promised, all levels below a block of A tokens may be done at once, measured from
the block's first row: rows by 2^distance, columns by 2^−distance, which stays in float32's range.
"""

import functools
import math

import numpy as np

SPAN = 64  # tokens of a span
LARGEST_EXPONENT = 120.0  # base 2, of an anchored block's columns: half of float32's range
LOWEST_ANCHORED = -10.0  # a floor as promised in benchmarks and tests: admits blocks of 8
LOG2E = math.log2(math.e)

# Places in `matrices` behind those of the levels 1, 2, …, 32.
LEVELS = 6
FROM_START, TO_END, FROM_ANCHOR, SUFFIX, TILE = range(LEVELS, LEVELS + 5)


def anchor(floor: float | None, tile: int) -> int:
    """A, tokens of the blocks that may be anchored at their first row where g ≥ floor: the largest
    power of two that keeps (A − 1)·|floor| in range; 1 for none."""
    if floor is None:
        return 1
    block = tile
    while block > 1 and (block - 1) * -floor * LOG2E > LARGEST_EXPONENT:
        block //= 2
    return block if block >= 4 else 1  # smaller blocks save no product


@functools.cache
def matrices(tile: int, anchored: int) -> np.ndarray:
    """[11, SPAN, SPAN] of zeros and ones, for tiles of C tokens and anchored blocks of A.

    Entry [m, r, i] says whether g_i is part of token r's sum m: of the levels h = 2^m its distance
    from the boundary in its block of 2h, then `FROM_START` of its tile (r included), `TO_END` (r
    excluded), `FROM_ANCHOR` (from the first row of its anchored block, that row excluded), `SUFFIX`
    (r and what follows in its tile) and `TILE` (all of its tile).
    """
    r, i = np.arange(SPAN)[:, None], np.arange(SPAN)[None, :]
    found = []
    for level in range(LEVELS):
        h = 1 << level
        boundary = (r & ~(2 * h - 1)) | (h - 1)
        found.append(((i > boundary) & (i <= r)) | ((i > r) & (i <= boundary)))
    same = i // tile == r // tile
    first = r & ~(anchored - 1)
    found += [same & (i <= r), same & (i > r), (i > first) & (i <= r), same & (i >= r), same]
    return np.stack(found).astype(np.float32)


def levels(tile: int, anchored: int) -> list[int]:
    """log2 of the dyadic levels of tiles of C tokens that an anchor does not cover, largest
    first."""
    return list(range(tile.bit_length() - 2, anchored.bit_length() - 2, -1))
