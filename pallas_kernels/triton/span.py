"""The span kernel: what 64 tokens of a head need besides the state, in parallel over spans.

    reads γ⊙q    edits γ⊙b⊙k    tails k⊙γ_C⊘γ    P    A = (I + T)⁻¹    γ_C

Distances come from products with 0/1 matrices (`blocks.decay`), so the log-decay is read as it is.
Under a content gate b is not known yet: the keys under the factors of every level are kept for the
walk in place of T and A. Tiles of 16 or 32 tokens are computed several at once, on the diagonal of
one square. Queries are not scaled here: the walk scales its outputs. GDN-2, arXiv 2605.22791.
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
from pallas_kernels.triton import ptx
from pallas_kernels.triton.plan import Operands, Plan

READS, EDITS, TAILS, KEYS = range(4)  # places in `Scores.tiles`


class Scores(NamedTuple):
    """What does not depend on the state, for one part of the sequence, in the products' dtype.

    Tiles of one shape lie side by side in one array: the walks then keep one address for all of
    them, where registers are short. H counts value heads where b differs among them.

    Attributes:
      tiles: [B, T, H, X · K], at `READS` γ⊙q, at `EDITS` γ⊙k (times b, unless keys are there), at
        `TAILS` k⊙γ_C⊘γ, from `KEYS` on k under the factors of each level (`Plan.key_tiles`), where
        a walk needs them.
      squares: [B, T, H, span or 2 · span], rows of a span against its own tokens, zero outside the
        tiles: P, then A where b is known; None where they are at hand already.
      ends: γ_C [B, T/C, H, K] float32.
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


def matrices(plan: Plan) -> Array:
    """The matrices of `decay`, as an argument of a kernel."""
    return jnp.asarray(decay.matrices(plan.tiles.chunk, plan.anchor), jnp.bfloat16)


def matrices_view() -> pl.BlockSpec:
    """All of them."""
    count = decay.TILE + 1
    return pl.BlockSpec((count, SPAN, SPAN), lambda *_: (0, 0, 0))


def summed(plan: Plan, matrix: Array, pieces: list[Array]) -> Array:
    """A matrix of `decay` times what the pieces add up to, float32."""
    found = plan.distance(matrix, pieces[0])
    for piece in pieces[1:]:
        found = found + plan.distance(matrix, piece)
    return found


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
    edit: Any
    pieces: list


def load_block(plan: Plan, x: Operands, block: Any) -> Loaded:
    """Read one block of key channels."""
    product, channels = plan.product, x.query.shape[1]
    query, key = product.operand(x.query[:, block]), product.operand(x.key[:, block])
    edit = None
    if x.erase is not None and x.erase.dtype == key.dtype and x.erase.shape[1] == channels:
        edit = ptx.times(x.erase[:, block], key)
    elif x.erase is not None:
        erase = gate_block(x.erase, block, channels)
        edit = product.operand(erase * key.astype(jnp.float32))
    pieces = ptx.split(gate_block(x.log_decay, block, channels), plan.pieces)
    return Loaded(query, key, edit, pieces)


def _span_kernel(
    m: Any, x: Operands, pairs: Any, out: Scores, *, plan: Plan, with_keys: bool
) -> None:
    channels = x.query.shape[1]
    width = min(channels, plan.tiles.span_key)
    blocks = channels // width
    # One block stays in registers throughout; more are read again at every level.
    held = load_block(plan, x, pl.ds(0, width)) if blocks == 1 else None

    def load(block: Any) -> Loaded:
        return load_block(plan, x, block) if held is None else held

    def for_blocks(visit: Any, carry: Any) -> Any:
        """Fold visit(block, carry) over the blocks of key channels."""
        if blocks == 1:
            return visit(pl.ds(0, width), carry)

        def step(j: Array, carry: Any) -> Any:
            return visit(pl.ds(j * width, width), carry)

        return jax.lax.fori_loop(0, blocks, step, carry)

    def keep_tiles(block: Any, carry: tuple) -> tuple:
        a = load(block)
        start = summed(plan, m[decay.FROM_START], a.pieces)
        edit = a.key if with_keys else a.edit
        reads, edits, factor = ptx.decayed_pair(a.query, edit, start)
        _keep(out, channels, READS, block, reads)
        _keep(out, channels, EDITS, block, edits)
        _keep_ends(plan, out.ends, block, factor)
        tails = ptx.decayed(a.key, summed(plan, m[decay.TO_END], a.pieces))
        _keep(out, channels, TAILS, block, tails)
        return carry

    for_blocks(keep_tiles, ())
    if out.squares is not None:
        scores, system = _squares(plan, m, x, out, load, for_blocks, with_keys, pairs)
        out.squares[:, :SPAN] = scores
        if system is not None:
            ordered, corrected = wy.order(SPAN), plan.tiles.inverse == "bf16"
            inverse = wy.unit_inverse(
                plan.inverse, system, ordered, plan.tiles.chunk, ptx.level_negated, corrected
            )
            out.squares[:, SPAN:] = plan.product.operand(inverse)


def _keep(out: Scores, channels: int, place: int, block: Any, found: Array) -> None:
    out.tiles[:, pl.ds(place * channels + block.start, block.size)] = found


def _keep_ends(plan: Plan, ends: Any, block: Any, factor: Array) -> None:
    """The last row of each tile."""
    tile = plan.tiles.chunk
    row = jax.lax.broadcasted_iota(jnp.int32, factor.shape, 0)
    column = jax.lax.broadcasted_iota(jnp.int32, factor.shape, 1)
    last = (row & (tile - 1)) == tile - 1
    place = ends.at[jax.lax.div(row, tile), block.start + column]
    plgpu.store(place, factor, mask=last)


def _squares(
    plan: Plan,
    m: Any,
    x: Operands,
    out: Scores,
    load: Any,
    for_blocks: Any,
    with_keys: bool,
    pairs: Any,
) -> tuple[Array, Array | None]:
    """P in the products' dtype, found unless `pairs` holds it, and T in float32 (None where b is
    not known): levels from the largest down, each over all the entries of smaller ones, which
    come after it."""
    product, channels, ordered = plan.unfenced, x.query.shape[1], wy.order(SPAN)
    wanted = Wanted(pairs is None, x.erase is not None)
    zero = jnp.zeros((SPAN, SPAN), jnp.float32)

    def add_level(block: Any, found: tuple, level: Any) -> tuple:
        a = load(block)
        distance = summed(plan, m[level], a.pieces)
        rows, edits = None, None
        if not wanted.scores:
            edits, columns, _ = ptx.decayed_pair(a.edit, a.key, distance)
        elif with_keys:
            rows, columns, _ = ptx.decayed_pair(a.query, a.key, distance)
            edits = ptx.decayed(a.edit, distance) if wanted.system else None
        else:
            row = jax.lax.broadcasted_iota(jnp.int32, distance.shape, 0)
            upper = -((row >> level) & 1)
            columns, edits = ptx.decayed_choice(upper, a.query, a.key, a.edit, distance)
            rows = columns  # queries above, keys below: rows and columns of a level are disjoint
        if with_keys:
            _keep(out, channels, KEYS + plan.levels[0] - level, block, columns)
        return _add_products(plan, found, rows, edits, columns)

    def add_anchored(block: Any, found: tuple) -> tuple:
        a = load(block)
        distance = summed(plan, m[decay.FROM_ANCHOR], a.pieces)
        columns = ptx.decayed(a.key, -distance)
        if with_keys:
            place = KEYS + len(plan.levels)
            _keep(out, channels, place, block, ptx.decayed(a.key, distance))
            _keep(out, channels, place + 1, block, columns)
        rows = ptx.decayed(a.query, distance) if wanted.scores else None
        edits = ptx.decayed(a.edit, distance) if wanted.system else None
        return _add_products(plan, found, rows, edits, columns)

    def add_diagonal(block: Any, found: Array) -> Array:
        a = load(block)
        return found + product(a.query, a.key, tb=True)

    def found_on(level: Any) -> Found:
        add = functools.partial(add_level, level=level)
        return wanted.named(for_blocks(add, (zero,) * sum(wanted)))

    def turn(i: Array, carry: tuple) -> tuple:
        scores, system = carry
        found, bound = found_on(plan.levels[0] - i), 2 << (plan.levels[0] - i)
        if wanted.scores and wanted.system:
            return ptx.merge_both(scores, system, found.scores, found.system, ordered, bound)
        if wanted.scores:
            return ptx.merge(scores, found.scores, ordered, bound), system
        return scores, ptx.merge(system, found.system, ordered, bound)

    # Rolled: unrolled, the compiler puts off the merges of a level into the next one, and spills.
    scores, system = zero.astype(product.dtype), zero
    above_lowest = sum(level > 0 for level in plan.levels)
    if above_lowest:
        scores, system = jax.lax.fori_loop(0, above_lowest, turn, (scores, system))
    if plan.anchor > 1:
        found = wanted.named(for_blocks(add_anchored, (zero,) * sum(wanted)))
        # Pairs of columns were merged by their first, which may lie below the diagonal alone.
        inside, outside = ordered < plan.anchor, ordered == wy.ABOVE
        if wanted.scores:
            kept = jnp.where(outside, jnp.zeros((), scores.dtype), scores)
            scores = jnp.where(inside, product.operand(found.scores), kept)
        if wanted.system:
            kept = jnp.where(inside, found.system, system)
            system = jnp.where(outside | (ordered == 0), 0.0, kept)
    elif wanted.scores:
        found = found_on(0)
        diagonal = for_blocks(add_diagonal, zero)
        other = found.system if wanted.system else zero
        scores, system = ptx.merge_lowest(scores, system, found.scores, diagonal, other, ordered)
    else:
        kept = jnp.where(ordered == 0, 0.0, system)
        system = jnp.where(ordered == 1, found_on(0).system, kept)
    return (scores if wanted.scores else pairs[...]), (system if wanted.system else None)


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


def _add_products(plan: Plan, found: tuple, rows: Any, edits: Any, columns: Array) -> tuple:
    """Adds the products of rows (if any), then of edits (if any) with the columns."""
    made = [plan.unfenced(left, columns, tb=True) for left in (rows, edits) if left is not None]
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
      with_keys: keep the keys under the factors of each level; edits are then without b.
      with_squares: find P and A.
      pairs: P of the part [B, T, N, span], where it was kept: A alone is then found.
    """
    batch, whole, heads, channels = x.query.shape
    length = whole // plan.parts
    if x.erase is not None:
        heads = max(heads, x.erase.shape[2])

    def made(rows: int, width: int, dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, rows, heads, width), dtype)

    count = KEYS + (plan.key_tiles if with_keys else 0)
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
