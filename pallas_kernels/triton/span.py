"""Kernels that are parallel over tiles: decay sums, and the scores of a span against itself.

Products of a span of 64 rows fill the tensor cores' widest instruction, so tiles of 16 or 32 tokens
are computed several at once, on the diagonal of one square.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.blocks import wy
from pallas_kernels.blocks.wy import Array
from pallas_kernels.tiling import SPAN
from pallas_kernels.triton.plan import Decay, Operands, Plan

KEY_BLOCK = 64  # key channels in registers at once
READS, EDITS, TAILS, KEYS = range(4)  # places in `Scores.tiles`


class Scores(NamedTuple):
    """What does not depend on the state, for one part of the sequence, in the products' dtype.

    Tiles of one shape lie side by side in one array: the walks then keep one address for all of
    them, where registers are short. H counts value heads where b differs among them.

    Attributes:
      tiles: [B, T, H, X · K], at `READS` γ⊙q, at `EDITS` γ⊙k (times b, unless keys are there), at
        `TAILS` k⊙γ_C⊘γ, from `KEYS` on k under the factors of each level, in the order of
        `Plan.key_tiles`, where a content gate needs them.
      squares: [B, T, H, span or 2 · span], rows of a span against its own tokens, zero outside the
        tiles: P, then A where b is known.
      ends: γ_C [B, T/C, H, K or 1] float32.
    """

    tiles: Any
    squares: Any
    ends: Any


def span_view(a: Any, heads: int, spans: int, part: int = 0) -> pl.BlockSpec:
    """What a program (t, b, h) sees of a [B, T, H, X]: the t-th of the part's spans. An array of
    that many spans is the part's own."""
    repeat = heads // a.shape[2]
    length = SPAN if a.shape[1] % (spans * SPAN) == 0 else a.shape[1] // spans
    first = part * spans if a.shape[1] > spans * length else 0
    shape = (None, length, None, a.shape[3])
    return pl.BlockSpec(shape, lambda t, b, h: (b, first + t, jax.lax.div(h, repeat), 0))


def tokens(span: int) -> Array:
    """[span]: the rows of a span. Rows of G are found by reading them again (they lie in the
    nearest cache), since blocks cannot be sliced."""
    return jax.lax.broadcasted_iota(jnp.int32, (span,), 0)


def middle(span: int, h: Array | int) -> Array:
    """For each token, the end of the lower half of its block of 2h."""
    return (tokens(span) & ~(2 * h - 1)) | (h - 1)


def tile_end(span: int, tile: int) -> Array:
    """For each token, the last of its tile."""
    return tokens(span) | (tile - 1)


def for_levels(plan: Plan, visit: Any, carry: Any) -> Any:
    """Fold visit(level, places, carry) over the levels, the dyadic ones in a loop of the program;
    places are those of the level's decayed rows and columns of k among the ones kept."""
    levels = plan.levels
    if plan.anchored:
        carry, levels = visit(levels[0], (0, 1), carry), levels[1:]

    def dyadic(i: Array, carry: Any) -> Any:
        h = levels[0].low << i
        return visit(wy.Level(h, 2 * h), (i + 2 * plan.anchored,), carry)

    return jax.lax.fori_loop(0, len(levels), dyadic, carry) if levels else carry


def level_factors(decay: Decay, level: wy.Level, places: tuple, block: Any = ...) -> tuple:
    """Decay factors of a level's rows and columns in a span; two places mean it is anchored."""
    span = decay.high.shape[0]
    if len(places) == 2:
        return wy.anchored_factors(decay.since(middle(span, wy.ANCHOR // 2), block))
    factor = wy.factor(decay.since(middle(span, level.low), block))
    return factor, factor


def _cumulate_kernel(log_decay_ref: Any, out: Decay, *, tile: int) -> None:
    for first in range(0, out.high.shape[0], tile):
        here = pl.ds(first, tile)
        log_decay = jnp.maximum(log_decay_ref[here, :].astype(jnp.float32), wy.LOWEST_DECAY)
        if out.low is not None:
            exact = jnp.floor(log_decay * 64.0) * (1.0 / 64.0)
            out.low[here, :] = jnp.cumsum(log_decay - exact, axis=0)
            log_decay = exact
        out.high[here, :] = jnp.cumsum(log_decay, axis=0)


def cumulate(plan: Plan, log_decay: Array, part: int) -> Decay:
    """Log-decays [B, T, H, K or 1] of a part summed from the start of each tile."""
    batch, length, heads, channels = log_decay.shape
    length = length // plan.parts
    sums = jax.ShapeDtypeStruct((batch, length, heads, channels), jnp.float32)
    out = Decay(sums, sums if plan.exact_sums else None)
    spans = length // SPAN
    (found,) = pl.pallas_call(
        functools.partial(_cumulate_kernel, tile=plan.tiles.chunk),
        grid=(spans, batch, heads),
        in_specs=[span_view(log_decay, heads, spans, part)],
        out_specs=(jax.tree.map(lambda a: span_view(a, heads, spans), out),),
        out_shape=(out,),
        **plan.compile_options(plan.tiles.parallel_warps),
    )(log_decay)
    return found


def _score_kernel(x: Operands, out: Scores, *, plan: Plan, with_keys: bool) -> None:
    span, channels = x.query.shape
    product, ordered = plan.product, wy.order(span)
    width = min(channels, KEY_BLOCK)
    square = jnp.zeros((span, span), jnp.float32)

    def for_blocks(visit: Any, carry: Any) -> Any:
        """Fold visit(first channel of a block, carry) over the blocks of key channels."""

        def step(j: Array, carry: Any) -> Any:
            return visit(j * width, carry)

        return jax.lax.fori_loop(0, channels // width, step, carry)

    def read(ref: Any, first: Array) -> Array:
        return ref[:, _gate_block(ref, first, width)].astype(jnp.float32)

    def keep(place: Array | int, first: Array, found: Array) -> None:
        out.tiles[:, pl.ds(place * channels + first, width)] = product.operand(found)

    def add_ends(first: Array, diagonal: Array) -> Array:
        block = _gate_block(x.decay.high, first, width)
        query, key = read(x.query, first) * plan.scale, read(x.key, first)
        start = jnp.exp(x.decay.read(..., block))
        keep(READS, first, query * start)
        keep(EDITS, first, (key if with_keys else read(x.erase, first) * key) * start)
        last = tile_end(span, plan.tiles.chunk)
        keep(TAILS, first, key * jnp.exp(-x.decay.since(last, block)))
        return diagonal + jnp.sum(query * key, axis=1)

    diagonal = for_blocks(add_ends, jnp.zeros((span,), jnp.float32))
    for i in range(span // plan.tiles.chunk):
        out.ends[i, :] = jnp.exp(x.decay.read((i + 1) * plan.tiles.chunk - 1))

    def add_level(level: wy.Level, places: tuple, found: tuple) -> tuple:
        def add_block(first: Array, found: tuple) -> tuple:
            queries, edits = found
            block = _gate_block(x.decay.high, first, width)
            upper, lower = level_factors(x.decay, level, places, block)
            key = read(x.key, first)
            columns = product.operand(key * lower)
            rows = product.operand(read(x.query, first) * plan.scale * upper)
            queries = queries + product(rows, columns, tb=True)
            if x.erase is not None:
                rows = product.operand(read(x.erase, first) * key * upper)
                edits = edits + product(rows, columns, tb=True)
            if with_keys:
                keep(places[-1] + KEYS, first, columns)
                if len(places) == 2:
                    keep(places[0] + KEYS, first, key * upper)
            return queries, edits

        queries, edits = for_blocks(add_block, (square, square))
        scores, system = found
        return scores + level.pick(queries, ordered), system + level.pick(edits, ordered)

    found = (jnp.where(ordered == 0, diagonal[:, None], 0.0), square)
    scores, system = for_levels(plan, add_level, found)
    out.squares[:, :span] = product.operand(scores)
    if x.erase is not None:

        def level(h: Array | int) -> Array:
            return wy.Level(h, 2 * h).pick(system, ordered)

        inverse = wy.unit_inverse(plan.inverse, level, plan.tiles.chunk, ordered, loop=True)
        out.squares[:, span:] = product.operand(inverse)


def _gate_block(ref: Any, first: Array, width: int) -> Any:
    """A block of channels of a view, or the one channel it has."""
    return pl.ds(0, 1) if ref.shape[1] == 1 else pl.ds(first, width)


def score(plan: Plan, x: Operands, part: int, with_keys: bool) -> Scores:
    """Scores of a part; x.decay is the part's own, the other operands are the whole sequence's.
    x.erase is b, or None where it is not known yet."""
    channels = x.query.shape[3]
    batch, length, heads, width = x.decay.high.shape
    if x.erase is not None:
        heads = max(heads, x.erase.shape[2])

    def made(rows: int, width: int, dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, rows, heads, width), dtype)

    count = KEYS + (plan.key_tiles[-1][1] + 1 if with_keys else 0)
    dtype, tile = plan.product.dtype, plan.tiles.chunk
    found = Scores(
        tiles=made(length, count * channels, dtype),
        squares=made(length, SPAN if x.erase is None else 2 * SPAN, dtype),
        ends=made(length // tile, width, jnp.float32),
    )
    spans = length // SPAN
    x = x._replace(value=None, write=None)
    (found,) = pl.pallas_call(
        functools.partial(_score_kernel, plan=plan, with_keys=with_keys),
        grid=(spans, batch, heads),
        in_specs=(jax.tree.map(lambda a: span_view(a, heads, spans, part), x),),
        out_specs=(jax.tree.map(lambda a: span_view(a, heads, spans), found),),
        out_shape=(found,),
        **plan.compile_options(plan.tiles.parallel_warps),
    )(x)
    return found
