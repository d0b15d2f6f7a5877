"""The span kernel: what the tiles of a span need besides the state, in parallel over spans.

    γ⊙q    γ⊙b⊙k    k⊙γ_C⊘γ    P    A = (I + T)⁻¹    γ_C

Distances come from products with 0/1 matrices (`blocks.decay`), so the log-decay is read as it is.
Under a content gate b is not known yet: the keys under the factors of every level are kept for the
scan in place of T and A. Tiles of 16 or 32 tokens are computed several at once, on the diagonal of
one square. Queries are not scaled here: the scan scales its outputs. GDN-2, arXiv 2605.22791.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.blocks import decay, wy
from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.blocks.wy import Array
from pallas_kernels.triton import head_decay, ptx
from pallas_kernels.triton.plan import Operands, Plan, summed

Q_DECAYED, BK_DECAYED, K_TO_END, K_LEVELS = range(4)  # places in `Scores.tiles`


class Scores(NamedTuple):
    """What does not depend on the state, for one part of the sequence, in the products' dtype.

    Tiles of one shape lie side by side in one array: the scans then keep one address for all of
    them, where registers are short. H counts value heads where b differs among them.

    Attributes:
      tiles: [B, T, H, X · K], by places of K channels: γ⊙q at `Q_DECAYED`, γ⊙b⊙k at `BK_DECAYED`
        (γ⊙k where keys are kept), k⊙γ_C⊘γ at `K_TO_END`, and from `K_LEVELS` on k under the factors
        of each level (`Plan.key_tiles`), where the scan solves.
      squares: [B, T, H, span or 2 · span], rows of a span against its own tokens, zero outside the
        tiles: P, then A where b is known; None where they are at hand already.
      ends: γ_C [B, T/C, H, K] float32.
    """

    tiles: Any
    squares: Any
    ends: Any


def holds_inverse(squares: Any) -> bool:
    """Whether A stands behind P in `Scores.squares`, or P stands alone."""
    return squares.shape[-1] == 2 * SPAN


def span_view(a: Any, heads: int, spans: int, part: int = 0) -> pl.BlockSpec:
    """What a program (t, b, h) sees of a [B, T, H, X]: the t-th of the part's spans. An array of
    that many spans is the part's own."""
    repeat = heads // a.shape[2]
    length = SPAN if a.shape[1] % (spans * SPAN) == 0 else a.shape[1] // spans
    first = part * spans if a.shape[1] > spans * length else 0
    shape = (None, length, None, a.shape[3])
    return pl.BlockSpec(shape, lambda t, b, h: (b, first + t, jax.lax.div(h, repeat), 0))


def matrices(plan: Plan) -> Array:
    """The matrices of `decay`, as an argument of a kernel."""
    return jnp.asarray(decay.matrices(plan.tiles.chunk, plan.anchor), jnp.bfloat16)


def matrices_view() -> pl.BlockSpec:
    """All of them."""
    count = decay.TILE + 1
    return pl.BlockSpec((count, SPAN, SPAN), lambda *_: (0, 0, 0))


def gate_block(ref: Any, block: Any, channels: int) -> Array:
    """A block of channels of a gate in float32; a gate of one channel stands for all."""
    rows = ref.shape[0]
    if ref.shape[1] == channels:
        return ref[:, block].astype(jnp.float32)
    return jnp.broadcast_to(ref[:, pl.ds(0, 1)].astype(jnp.float32), (rows, block.size))


class Loaded(NamedTuple):
    """One block of key channels of a span: q, k and b⊙k (None where b is not known) as operands,
    and the pieces of the log-decay."""

    query: Array
    key: Array
    bk: Any
    pieces: list


def load_block(plan: Plan, x: Operands, block: Any) -> Loaded:
    """Read one block of key channels."""
    product, channels = plan.product, x.query.shape[1]
    query, key = product.operand(x.query[:, block]), product.operand(x.key[:, block])
    bk = None
    if x.erase is not None and x.erase.dtype == key.dtype and x.erase.shape[1] == channels:
        bk = ptx.times(x.erase[:, block], key)
    elif x.erase is not None:
        erase = gate_block(x.erase, block, channels)
        bk = product.operand(erase * key.astype(jnp.float32))
    pieces = ptx.split(gate_block(x.log_decay, block, channels), plan.pieces)
    return Loaded(query, key, bk, pieces)


class _Span(NamedTuple):
    """What the steps of the span kernel share: the views of one program, and what is static.

    Attributes:
      plan: what is static about the call.
      m: the matrices of `decay`.
      x, out: operands and outputs, [span, X].
      held: the one block of key channels, which stays in registers throughout; None where there
        are several, which are read again at every level.
      with_keys: keep the keys under the factors of each level.
    """

    plan: Plan
    m: Any
    x: Operands
    out: Scores
    held: Loaded | None
    with_keys: bool

    def load(self, block: Any) -> Loaded:
        """One block of key channels."""
        return load_block(self.plan, self.x, block) if self.held is None else self.held

    def for_blocks(self, visit: Any, carry: Any) -> Any:
        """Fold visit(block, carry) over the blocks of key channels."""
        channels = self.x.query.shape[1]
        width = min(channels, self.plan.tiles.span_key)
        if self.held is not None:
            return visit(pl.ds(0, width), carry)

        def step(j: Array, carry: Any) -> Any:
            return visit(pl.ds(j * width, width), carry)

        return jax.lax.fori_loop(0, channels // width, step, carry)

    def keep(self, place: Any, block: Any, found: Array) -> None:
        """Write a block of the tiles at a place of `Scores.tiles`."""
        first = place * self.x.query.shape[1] + block.start
        self.out.tiles[:, pl.ds(first, block.size)] = found


def _span_kernel(
    m: Any, x: Operands, pairs: Any, out: Scores, *, plan: Plan, with_keys: bool
) -> None:
    channels = x.query.shape[1]
    width = min(channels, plan.tiles.span_key)
    held = load_block(plan, x, pl.ds(0, width)) if channels == width else None
    span = _Span(plan, m, x, out, held, with_keys)
    span.for_blocks(functools.partial(_keep_tiles, span), ())
    if out.squares is None:
        return
    scores, system = _squares(span, pairs)
    out.squares[:, :SPAN] = scores
    if system is not None:
        ordered, corrected = wy.order(SPAN), plan.tiles.inverse == "bf16"
        inverse = wy.unit_inverse(
            plan.inverse, system, ordered, plan.tiles.chunk, ptx.level_negated, corrected
        )
        out.squares[:, SPAN:] = plan.product.operand(inverse)


def _keep_tiles(span: _Span, block: Any, carry: tuple) -> tuple:
    """γ⊙q, γ⊙b⊙k (γ⊙k where keys are kept), k⊙γ_C⊘γ and γ_C of a block of key channels."""
    plan, m, a = span.plan, span.m, span.load(block)
    start = summed(plan, m[decay.FROM_START], a.pieces)
    bk = a.key if span.with_keys else a.bk
    q_decayed, bk_decayed, factor = ptx.decayed_pair(a.query, bk, start)
    span.keep(Q_DECAYED, block, q_decayed)
    span.keep(BK_DECAYED, block, bk_decayed)
    _keep_ends(plan, span.out.ends, block, factor)
    k_to_end = ptx.decayed(a.key, summed(plan, m[decay.TO_END], a.pieces))
    span.keep(K_TO_END, block, k_to_end)
    return carry


def _keep_ends(plan: Plan, ends: Any, block: Any, factor: Array) -> None:
    """The last row of each tile."""
    tile = plan.tiles.chunk
    row = jax.lax.broadcasted_iota(jnp.int32, factor.shape, 0)
    column = jax.lax.broadcasted_iota(jnp.int32, factor.shape, 1)
    last = (row & (tile - 1)) == tile - 1
    place = ends.at[jax.lax.div(row, tile), block.start + column]
    plgpu.store(place, factor, mask=last)


class Found(NamedTuple):
    """P and T of one level, float32; None where not wanted."""

    scores: Any
    system: Any


class Wanted(NamedTuple):
    """Which of P and T are to be found."""

    scores: bool
    system: bool

    def named(self, found: tuple) -> Found:
        """What was found of those that are wanted, in their order."""
        left = iter(found)
        return Found(*(next(left) if wanted else None for wanted in self))


def _squares(span: _Span, pairs: Any) -> tuple[Array, Array | None]:
    """P in the products' dtype, found unless `pairs` holds it, and T in float32 (None where b is
    not known): levels from the largest down, each over all the entries of smaller ones, which
    come after it."""
    plan, ordered = span.plan, wy.order(SPAN)
    wanted = Wanted(pairs is None, span.x.erase is not None)
    zero = jnp.zeros((SPAN, SPAN), jnp.float32)
    if head_decay.per_head(span.x.log_decay) and not span.with_keys:
        return _squares_of_heads(span, pairs, wanted, ordered)

    def found_by(step: Any) -> Found:
        return wanted.named(span.for_blocks(step, (zero,) * sum(wanted)))

    def found_on(level: Any) -> Found:
        return found_by(functools.partial(_add_level, span, wanted, level))

    def turn(i: Array, carry: tuple) -> tuple:
        scores, system = carry
        found, bound = found_on(plan.levels[0] - i), 2 << (plan.levels[0] - i)
        if wanted.scores and wanted.system:
            return ptx.merge_both(scores, system, found.scores, found.system, ordered, bound)
        if wanted.scores:
            return ptx.merge(scores, found.scores, ordered, bound), system
        return scores, ptx.merge(system, found.system, ordered, bound)

    # Rolled: unrolled, the compiler puts off the merges of a level into the next one, and spills.
    scores, system = zero.astype(plan.product.dtype), zero
    above_lowest = sum(level > 0 for level in plan.levels)
    if above_lowest:
        scores, system = jax.lax.fori_loop(0, above_lowest, turn, (scores, system))
    if plan.anchor > 1:
        found = found_by(functools.partial(_add_anchored, span, wanted))
        # Pairs of columns were merged by their first, which may lie below the diagonal alone.
        inside, outside = ordered < plan.anchor, ordered == wy.ABOVE
        if wanted.scores:
            kept = jnp.where(outside, jnp.zeros((), scores.dtype), scores)
            scores = jnp.where(inside, plan.product.operand(found.scores), kept)
        if wanted.system:
            kept = jnp.where(inside, found.system, system)
            system = jnp.where(outside | (ordered == 0), 0.0, kept)
    elif wanted.scores:
        found = found_on(0)
        diagonal = span.for_blocks(functools.partial(_add_diagonal, span), zero)
        other = found.system if wanted.system else zero
        scores, system = ptx.merge_lowest(scores, system, found.scores, diagonal, other, ordered)
    else:
        kept = jnp.where(ordered == 0, 0.0, system)
        system = jnp.where(ordered == 1, found_on(0).system, kept)
    return (scores if wanted.scores else pairs[...]), (system if wanted.system else None)


def _squares_of_heads(
    span: _Span, pairs: Any, wanted: Wanted, ordered: Array
) -> tuple[Array, Array | None]:
    """The two squares under one log-decay per head."""
    zero = jnp.zeros((SPAN, SPAN), jnp.float32)

    def add(block: Any, found: tuple) -> tuple:
        a = span.load(block)
        q_rows, bk_rows = (a.query if wanted.scores else None), (a.bk if wanted.system else None)
        return _add_products(span.plan, found, q_rows, bk_rows, a.key)

    found = wanted.named(span.for_blocks(add, (zero,) * sum(wanted)))
    factors = head_decay.pair_factors(span.plan, span.m, span.x.log_decay)
    inside = ordered < span.plan.tiles.chunk

    def weighted(square: Array, where: Array) -> Array:
        return jnp.where(where, square * factors, 0.0)

    system = weighted(found.system, inside & (ordered > 0)) if wanted.system else None
    if not wanted.scores:
        return pairs[...], system
    return span.plan.product.operand(weighted(found.scores, inside)), system


def _add_level(span: _Span, wanted: Wanted, level: Any, block: Any, found: tuple) -> tuple:
    """Add a block's share of P and T on one dyadic level."""
    plan, a = span.plan, span.load(block)
    distance = summed(plan, span.m[level], a.pieces)
    q_rows, bk_rows = None, None
    if not wanted.scores:
        bk_rows, columns, _ = ptx.decayed_pair(a.bk, a.key, distance)
    elif span.with_keys:
        q_rows, columns, _ = ptx.decayed_pair(a.query, a.key, distance)
        bk_rows = ptx.decayed(a.bk, distance) if wanted.system else None
    else:
        row = jax.lax.broadcasted_iota(jnp.int32, distance.shape, 0)
        upper = -((row >> level) & 1)
        columns, bk_rows = ptx.decayed_choice(upper, a.query, a.key, a.bk, distance)
        q_rows = columns  # queries above, keys below: rows and columns of a level are disjoint
    if span.with_keys:
        span.keep(K_LEVELS + plan.levels[0] - level, block, columns)
    return _add_products(plan, found, q_rows, bk_rows, columns)


def _add_anchored(span: _Span, wanted: Wanted, block: Any, found: tuple) -> tuple:
    """Add a block's share of P and T inside the anchored blocks, whose levels are done at once."""
    plan, a = span.plan, span.load(block)
    distance = summed(plan, span.m[decay.FROM_ANCHOR], a.pieces)
    columns = ptx.decayed(a.key, -distance)
    if span.with_keys:
        place = K_LEVELS + len(plan.levels)
        span.keep(place, block, ptx.decayed(a.key, distance))
        span.keep(place + 1, block, columns)
    q_rows = ptx.decayed(a.query, distance) if wanted.scores else None
    bk_rows = ptx.decayed(a.bk, distance) if wanted.system else None
    return _add_products(plan, found, q_rows, bk_rows, columns)


def _add_diagonal(span: _Span, block: Any, found: Array) -> Array:
    """Add a block's share of P's diagonal, which no decay enters."""
    a = span.load(block)
    return found + span.plan.unfenced(a.query, a.key, tb=True)


def _add_products(plan: Plan, found: tuple, q_rows: Any, bk_rows: Any, columns: Array) -> tuple:
    """Add the products with the columns: of q's rows (if any) to P, of b⊙k's (if any) to T."""
    made = [plan.unfenced(left, columns, tb=True) for left in (q_rows, bk_rows) if left is not None]
    return tuple(kept + added for kept, added in zip(found, made, strict=True))


def score(
    plan: Plan,
    x: Operands,
    part: int,
    with_keys: bool,
    with_squares: bool = True,
    pairs: Array | None = None,
) -> Scores:
    """Scores of a part of the operands, which are the whole sequence's but for x.erase, which may
    be the part's own: b, or None where it is not known yet.

    Args:
      plan: what is static.
      x: the operands.
      part: which one.
      with_keys: keep the keys under the factors of each level; `BK_DECAYED` is then without b.
      with_squares: find P and A.
      pairs: P of the part [B, T, N, span], where it was kept: A alone is then found.
    """
    batch, whole, heads, channels = x.query.shape
    length = whole // plan.parts
    if x.erase is not None:
        heads = max(heads, x.erase.shape[2])

    def made(rows: int, width: int, dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, rows, heads, width), dtype)

    count = K_LEVELS + (plan.key_tiles if with_keys else 0)
    dtype, tile = plan.product.dtype, plan.tiles.chunk
    squares = made(length, SPAN if x.erase is None else 2 * SPAN, dtype)
    found = Scores(
        tiles=made(length, count * channels, dtype),
        squares=squares if with_squares else None,
        ends=made(length // tile, channels, jnp.float32),
    )
    spans = length // SPAN
    x = x._replace(value=None, write=None)
    (found,) = pl.pallas_call(
        functools.partial(_span_kernel, plan=plan, with_keys=with_keys),
        grid=(spans, batch, heads),
        in_specs=(
            matrices_view(),
            jax.tree.map(lambda a: span_view(a, heads, spans, part), x),
            None if pairs is None else span_view(pairs, heads, spans),
        ),
        out_specs=(jax.tree.map(lambda a: span_view(a, heads, spans), found),),
        out_shape=(found,),
        **plan.compile_options(plan.tiles.parallel_warps),
    )(matrices(plan), x, pairs)
    return found
