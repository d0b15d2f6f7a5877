"""Gradients of a span's inputs, parallel over spans, in two kernels.

From what the backward walk left: the gradients of the outputs (the content's share added), of
W = Z − Ē S_0 and of the states at the ends of the tiles.

    pairs       dP = dO Rᵀ and dT = −dW Rᵀ of tokens with each other, made symmetric; dv, dw
    gradients   of q, k, g, b, a block of key channels at a time

Every decayed product exp(G_r − G_s) between two tokens gives G_r what it takes from G_s, so that,
apart from the diagonal of P,

    dG = q ⊙ dq + (b⊙k) ⊙ d(b⊙k) − k ⊙ dk,      dg_i = Σ_{r ≥ i} dG_r over the tile

(gate-aware: b sits inside; GDN-2, arXiv 2605.22791). A level's rows and columns are disjoint, so
one product with a symmetric square serves both.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.blocks import decay
from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.blocks.wy import Array
from pallas_kernels.triton import ptx
from pallas_kernels.triton.plan import Operands, Plan
from pallas_kernels.triton.span import (
    gate_block,
    load_block,
    matrices,
    matrices_view,
    span_view,
    summed,
)

VALUE_BLOCK = 128


class PairInputs(NamedTuple):
    """What the pairs of a part are made of.

    Attributes:
      value, write: of the whole sequence [B, T, N, V], [B, T, N, V or 1].
      d_output: of the part or the whole [B, T, N, V]: gradient of the outputs, before the scale.
      residual, d_written: R and the gradient of W, of the part [B, T, N, V].
    """

    value: Any
    write: Any
    d_output: Any
    residual: Any
    d_written: Any


class Pairs(NamedTuple):
    """What the pairs' kernel leaves behind.

    Attributes:
      squares: [B, T, N, 2 · span] of the part in the products' dtype: scale · dP, mirrored at its
        diagonal, and dT, mirrored, zero on it; zero outside the tiles.
      value, write: gradients [B, T, N, V] and [B, T, N, V or 1] of the whole sequence, the part's
        rows written.
    """

    squares: Any
    value: Any
    write: Any


def _differing() -> Array:
    """[span, span]: r ^ c."""
    row = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 0)
    return row ^ jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 1)


def _pairs_kernel(x: PairInputs, *rest: Any, plan: Plan) -> None:
    out: Pairs = rest[-1]  # outputs to be continued come before it
    product, operand = plan.product, plan.product.operand
    width = x.residual.shape[1]
    zero = jnp.zeros((SPAN, SPAN), jnp.float32)
    lower_scores = upper_scores = lower_system = upper_system = zero
    d_write = jnp.zeros((SPAN,), jnp.float32)
    for first in range(0, width, VALUE_BLOCK):
        block = pl.ds(first, min(VALUE_BLOCK, width))
        residual, d_written = x.residual[:, block], x.d_written[:, block]
        d_output = operand(x.d_output[:, block])
        lower_scores = lower_scores + product(d_output, residual, tb=True)
        upper_scores = upper_scores + product(residual, d_output, tb=True)
        lower_system = lower_system - product(d_written, residual, tb=True)
        upper_system = upper_system - product(residual, d_written, tb=True)
        wide = d_written.astype(jnp.float32)
        d_value = wide * gate_block(x.write, block, width)
        out.value[:, block] = d_value.astype(out.value.dtype)
        d_gate = wide * x.value[:, block].astype(jnp.float32)
        if out.write.shape[1] == width:
            out.write[:, block] = d_gate.astype(out.write.dtype)
        else:
            d_write = d_write + jnp.sum(d_gate, axis=1)
    if out.write.shape[1] != width:
        out.write[...] = d_write[:, None].astype(out.write.dtype)
    row = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 1)
    inside = (row ^ column) < plan.tiles.chunk
    scores = plan.scale * jnp.where(row >= column, lower_scores, upper_scores)
    system = jnp.where(row > column, lower_system, upper_system)
    out.squares[:, :SPAN] = operand(jnp.where(inside, scores, 0.0))
    out.squares[:, SPAN:] = operand(jnp.where(inside & (row != column), system, 0.0))


class SpanInputs(NamedTuple):
    """What the gradients of a part are made of.

    Attributes:
      query, key: of the whole sequence [B, T, H, K].
      log_decay: g of the whole sequence [B, T, H, K or 1].
      erase: b [B, T, H or N, K or 1], of the part or the whole.
      pairs: [B, T, N, 2 · span] of the part.
      d_output: [B, T, N, V] of the part or the whole, before the scale.
      residual, d_written: R and the gradient of W, of the part [B, T, N, V].
      states, d_states: S at the start and its gradient at the end of each tile [B, T/C, N, V, K]
        (more entries may follow).
    """

    query: Any
    key: Any
    log_decay: Any
    erase: Any
    pairs: Any
    d_output: Any
    residual: Any
    d_written: Any
    states: Any
    d_states: Any


class SpanGradients(NamedTuple):
    """Gradients [B, T, N, X] of the whole sequence, the part's rows written; X = 1 a block of key
    channels where the gate has one channel."""

    query: Any
    key: Any
    log_decay: Any
    erase: Any


def _gradients_kernel(m: Any, x: SpanInputs, *rest: Any, plan: Plan) -> None:
    out: SpanGradients = rest[-1]  # outputs to be continued come before it
    channels = x.query.shape[1]
    block = pl.ds(0, channels)
    gates = Operands(x.query, x.key, None, x.log_decay, x.erase, None)
    a = load_block(plan, gates, block)
    sums, leaving = _state_products(plan, m, x, a)
    sums = _level_products(plan, m, x, a, sums)
    d_query, d_edit, d_key = sums

    row = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 1)
    scores = x.pairs[:, :SPAN].astype(jnp.float32)
    diagonal = jnp.sum(jnp.where(row == column, scores, 0.0), axis=1)[:, None]
    query, key = a.query.astype(jnp.float32), a.key.astype(jnp.float32)
    erase = gate_block(x.erase, block, channels)
    d_decay = query * d_query + a.edit.astype(jnp.float32) * d_edit - key * d_key + leaving
    d_log_decay = summed(plan, m[decay.SUFFIX], ptx.halves(d_decay, plan.pieces))
    out.query[...] = (d_query + diagonal * key).astype(out.query.dtype)
    out.key[...] = (d_key + erase * d_edit + diagonal * query).astype(out.key.dtype)
    d_erase = key * d_edit
    for ref, gate in ((out.log_decay, d_log_decay), (out.erase, d_erase)):
        if ref.shape[1] != channels:
            gate = jnp.sum(gate, axis=1)[:, None]
        ref[...] = gate.astype(ref.dtype)


def _state_products(plan: Plan, m: Any, x: SpanInputs, a: Any) -> tuple[tuple, Array]:
    """Gradients of q, b⊙k and k by way of the states, and that of the decay of whole tiles, in the
    last row of each, from which the suffix sums hand it to all."""
    product, tile = plan.product, plan.tiles.chunk
    channels, width = x.query.shape[1], x.residual.shape[1]
    zeros = jnp.zeros((SPAN, channels), jnp.float32)
    reads = edits = tails = kept = zeros
    row = jax.lax.broadcasted_iota(jnp.int32, (SPAN, 1), 0)
    for first in range(0, width, VALUE_BLOCK):
        block = pl.ds(first, min(VALUE_BLOCK, width))
        d_output = product.operand(x.d_output[:, block])
        residual, d_written = x.residual[:, block], x.d_written[:, block]
        for n in range(SPAN // tile):
            state, d_state = x.states[n, block, :], x.d_states[n, block, :]
            inside = (row >= n * tile) & (row < (n + 1) * tile)

            def of_tile(found: Array, inside=inside) -> Array:
                return found if tile == SPAN else jnp.where(inside, found, 0.0)

            reads = reads + of_tile(product(d_output, state))
            edits = edits - of_tile(product(d_written, state))
            tails = tails + of_tile(product(residual, d_state))
            both = jnp.sum(state.astype(jnp.float32) * d_state.astype(jnp.float32), axis=0)
            kept = kept + of_tile(jnp.broadcast_to(both[None, :], zeros.shape))
    start = ptx.exp2(summed(plan, m[decay.FROM_START], a.pieces))
    tails = tails * ptx.exp2(summed(plan, m[decay.TO_END], a.pieces))
    last = (jax.lax.broadcasted_iota(jnp.int32, zeros.shape, 0) & (tile - 1)) == tile - 1
    through = a.key.astype(jnp.float32) * tails
    if tile == SPAN:
        through = jnp.broadcast_to(jnp.sum(through, axis=0)[None, :], zeros.shape)
    else:
        through = summed(plan, m[decay.TILE], ptx.halves(through, plan.pieces))
    leaving = jnp.where(last, through + kept * start, 0.0)
    return (plan.scale * start * reads, start * edits, tails), leaving


def _level_products(plan: Plan, m: Any, x: SpanInputs, a: Any, sums: tuple) -> tuple:
    """What pairs of tokens within a tile add to the gradients of q, b⊙k and k."""
    product, differing = plan.product, _differing()
    scores, system = x.pairs[:, :SPAN], x.pairs[:, SPAN:]
    for level in plan.levels:
        distance = summed(plan, m[level], a.pieces)
        row = jax.lax.broadcasted_iota(jnp.int32, distance.shape, 0)
        upper = -((row >> level) & 1)
        queries, edits, factor = ptx.decayed_choices(upper, a.query, a.key, a.edit, distance)
        of_scores, of_system = ptx.on_level(scores, system, differing, level)
        found = product(of_scores, queries), product(of_system, edits)
        sums = ptx.accumulate(sums, *found, factor, upper)
    return sums if plan.anchor == 1 else _anchored_products(plan, m, x, a, sums)


def _anchored_products(plan: Plan, m: Any, x: SpanInputs, a: Any, sums: tuple) -> tuple:
    """The same inside blocks of A tokens, whose rows and columns have factors of their own."""
    product, operand = plan.product, plan.product.operand
    row = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 1)
    inside, zero = (row ^ column) < plan.anchor, jnp.zeros((), product.dtype)
    below, above = inside & (row > column), inside & (row < column)
    distance = summed(plan, m[decay.FROM_ANCHOR], a.pieces)
    columns = ptx.decayed(a.key, -distance)
    queries, edits, factor = ptx.decayed_pair(a.query, a.edit, distance)
    scores, system = x.pairs[:, :SPAN], x.pairs[:, SPAN:]

    def part(square: Array, where: Array) -> Array:
        return operand(jnp.where(where, square, zero))

    d_query, d_edit, d_key = sums
    d_query = d_query + factor * product(part(scores, below), columns)
    d_edit = d_edit + factor * product(part(system, below), columns)
    both = product(part(scores, above), queries) + product(part(system, above), edits)
    return d_query, d_edit, d_key + ptx.exp2(-distance) * both


def pairs(plan: Plan, x: PairInputs, part: int, before: Pairs | None) -> Pairs:
    """Pairs of a part; gradients of v and w are written into those of the whole sequence.

    Args:
      plan: what is static.
      x: of the part.
      part: which one.
      before: the gradients of v and w with other parts written, if any.
    """
    batch, length, heads, _ = x.residual.shape
    spans = length // SPAN
    squares = jax.ShapeDtypeStruct((batch, length, heads, 2 * SPAN), plan.product.dtype)
    made = Pairs(squares, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x.value, x.write)))

    def see(a: Any) -> pl.BlockSpec:
        return span_view(a, heads, spans, part)

    arguments: list = [x]
    in_specs: list = [jax.tree.map(see, x)]
    out_specs = jax.tree.map(see, made)
    options = plan.compile_options(plan.tiles.parallel_warps)
    if before is not None:
        first = len(jax.tree.leaves(arguments))
        options["input_output_aliases"] = {first: 1, first + 1: 2}
        arguments.append(before[1:])
        in_specs.append(out_specs[1:])
    (found,) = pl.pallas_call(
        functools.partial(_pairs_kernel, plan=plan),
        grid=(spans, batch, heads),
        in_specs=tuple(in_specs),
        out_specs=(out_specs,),
        out_shape=(made,),
        **options,
    )(*arguments)
    return found


def gradients(
    plan: Plan, x: SpanInputs, part: int, like: SpanGradients, before: SpanGradients | None
) -> SpanGradients:
    """Gradients of a part, written into those of the whole sequence.

    Args:
      plan: what is static.
      x: of the part.
      part: which one.
      like: shapes and dtypes of the outputs [B, T, N, X].
      before: the outputs with other parts written, if any.
    """
    batch, length, heads, _ = x.residual.shape
    channels, spans = x.query.shape[3], length // SPAN
    views = _Views(heads, channels, min(channels, plan.tiles.block_key), spans, part)
    arguments: list = [matrices(plan), x]
    in_specs: list = [matrices_view(), views.inputs(x, SPAN // plan.tiles.chunk)]
    out_specs = jax.tree.map(views.keys, like)
    options = plan.compile_options(plan.tiles.parallel_warps)
    if before is not None:
        first = len(jax.tree.leaves(arguments))
        options["input_output_aliases"] = {first + i: i for i in range(len(like))}
        arguments.append(before)
        in_specs.append(out_specs)
    (found,) = pl.pallas_call(
        functools.partial(_gradients_kernel, plan=plan),
        grid=(spans, batch, heads * views.blocks),
        in_specs=tuple(in_specs),
        out_specs=(out_specs,),
        out_shape=(like,),
        **options,
    )(*arguments)
    return found


class _Views(NamedTuple):
    """What a program (t, b, i) sees: span t of the part, value head and block of key channels i."""

    heads: int
    channels: int
    block: int
    spans: int
    part: int

    @property
    def blocks(self) -> int:
        """Blocks of key channels."""
        return self.channels // self.block

    def rows(self, a: Any, width: int, by_block: bool) -> pl.BlockSpec:
        """Rows of a [B, T, H, X] of the part or of the whole sequence, `width` channels of it."""
        repeat = self.heads // a.shape[2]
        first = self.part * self.spans if a.shape[1] > self.spans * SPAN else 0

        def place(t: Any, b: Any, i: Any) -> tuple:
            head = jax.lax.div(jax.lax.div(i, self.blocks), repeat)
            return b, first + t, head, jax.lax.rem(i, self.blocks) if by_block else 0

        return pl.BlockSpec((None, SPAN, None, width), place)

    def keys(self, a: Any) -> pl.BlockSpec:
        """A block of key channels; of a gate of one channel that one (of its gradient, one a
        block)."""
        width = self.block if a.shape[3] == self.channels else 1
        return self.rows(a, width, by_block=a.shape[3] > 1)

    def values(self, a: Any) -> pl.BlockSpec:
        """All value channels."""
        return self.rows(a, a.shape[3], by_block=False)

    def states(self, a: Any, tiles: int) -> pl.BlockSpec:
        """A block of key channels of the states of the span's tiles, [B, T/C, N, V, K]."""

        def place(t: Any, b: Any, i: Any) -> tuple:
            return b, t, jax.lax.div(i, self.blocks), 0, jax.lax.rem(i, self.blocks)

        return pl.BlockSpec((None, tiles, None, a.shape[3], self.block), place)

    def inputs(self, x: SpanInputs, tiles: int) -> SpanInputs:
        """All of the inputs."""
        return SpanInputs(
            query=self.keys(x.query),
            key=self.keys(x.key),
            log_decay=self.keys(x.log_decay),
            erase=self.keys(x.erase),
            pairs=self.values(x.pairs),
            d_output=self.values(x.d_output),
            residual=self.values(x.residual),
            d_written=self.values(x.d_written),
            states=self.states(x.states, tiles),
            d_states=self.states(x.d_states, tiles),
        )
