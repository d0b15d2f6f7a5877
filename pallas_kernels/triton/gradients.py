"""Gradients of a span's inputs, parallel over spans and blocks of key channels.

From the gradients that the backward walk left: of the outputs (the content's share added), of
W = Z − Ē S_0 and of the states at the ends of the tiles. Every decayed product exp(G_r − G_s)
between two tokens gives G_r what it takes from G_s, so that, apart from the diagonal of P,

    dG = q ⊙ dq + (b⊙k) ⊙ d(b⊙k) − k ⊙ dk,      dg_i = Σ_{r ≥ i} dG_r over the tile

(gate-aware: b sits inside; GDN-2, arXiv 2605.22791).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.blocks import wy
from pallas_kernels.blocks.wy import Array
from pallas_kernels.tiling import SPAN
from pallas_kernels.triton.plan import Plan, rows
from pallas_kernels.triton.span import for_levels, level_factors, tile_end

VALUE_BLOCK = 128


class SpanInputs(NamedTuple):
    """What the gradients of a part are made of.

    Attributes:
      query, key: of the whole sequence [B, T, H, K].
      decay: G of the part.
      erase: b [B, T, H or N, K or 1], of the part or the whole.
      d_output: [B, T, N, V] of the whole sequence.
      d_sums: of the sums of outputs in the part's gate chunks [B, chunks, N, V]; None without.
      residual, d_written: R and the gradient of W, of the part [B, T, N, V].
      states, d_states: S at the start and its gradient at the end of each tile [B, T/C, N, V, K]
        (more entries may follow).
    """

    query: Any
    key: Any
    decay: Any
    erase: Any
    d_output: Any
    d_sums: Any
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


def _gradients_kernel(x: SpanInputs, *rest: Any, plan: Plan) -> None:
    out: SpanGradients = rest[-1]  # outputs to be continued come before it
    span, channels = x.query.shape
    product, tile = plan.product, plan.tiles.chunk
    token = jax.lax.broadcasted_iota(jnp.int32, (span, 1), 0)
    zeros = jnp.zeros((span, channels), jnp.float32)
    carry = (zeros, zeros, zeros, zeros, jnp.zeros((span, span)), jnp.zeros((span, span)))
    for v in range(0, x.d_output.shape[1], VALUE_BLOCK):
        block = pl.ds(v, min(VALUE_BLOCK, x.d_output.shape[1]))
        carry = _state_products(plan, x, block, token, carry)
    d_reads, d_edits, d_tails, through_end, d_scores, d_system = carry

    start = jnp.exp(x.decay.read())
    last = tile_end(span, tile)
    tail, end = jnp.exp(-x.decay.since(last)), jnp.exp(x.decay.read(last))
    ordered = wy.order(span)
    diagonal = jnp.sum(jnp.where(ordered == 0, d_scores, 0.0), axis=1)[:, None]
    key = rows(x.key, 0, span)
    d_tails = tail * d_tails
    leaving = _tile_sums(plan, key * d_tails) + through_end * end

    def add_level(level: wy.Level, places: tuple, found: tuple) -> tuple:
        upper, lower = level_factors(x.decay, level, places)
        d_query, d_row, d_column = found
        key = rows(x.key, 0, span)
        columns = product.operand(key * lower)
        of_scores = product.operand(level.pick(d_scores, ordered))
        of_system = product.operand(level.pick(d_system, ordered))
        queries = product.operand(rows(x.query, 0, span) * plan.scale * upper)
        edits = product.operand(rows(x.erase, 0, span) * key * upper)
        d_query = d_query + upper * product(of_scores, columns)
        d_row = d_row + upper * product(of_system, columns)
        both = product(of_scores, queries, ta=True) + product(of_system, edits, ta=True)
        return d_query, d_row, d_column + lower * both

    found = (start * d_reads, start * d_edits, d_tails)
    d_query, d_row, d_column = for_levels(plan, add_level, found)

    key, query, erase = rows(x.key, 0, span), rows(x.query, 0, span), rows(x.erase, 0, span)
    query = query * plan.scale
    d_decay = query * d_query + erase * key * d_row - key * d_column
    d_log_decay = d_decay + leaving + _tile_sums(plan, d_decay) - _tile_cumsum(plan, d_decay)
    out.query[...] = (plan.scale * (d_query + diagonal * key)).astype(out.query.dtype)
    d_key = d_column + erase * d_row + diagonal * query
    out.key[...] = d_key.astype(out.key.dtype)
    d_erase = key * d_row
    for ref, gate in ((out.log_decay, d_log_decay), (out.erase, d_erase)):
        if ref.shape[1] != channels:
            gate = jnp.sum(gate, axis=1)[:, None]
        ref[...] = gate.astype(ref.dtype)


def _state_products(plan: Plan, x: SpanInputs, block: Any, token: Array, carry: tuple) -> tuple:
    """Products over one block of value channels: those with states, tile after tile, and the
    gradients of P and T [span, span]."""
    product, tile = plan.product, plan.tiles.chunk
    d_output = x.d_output[:, block].astype(jnp.float32)
    if x.d_sums is not None:
        first = pl.program_id(0) * SPAN
        rows_of = jax.lax.broadcasted_iota(jnp.int32, (SPAN,), 0)
        chunk = jax.lax.div(first + rows_of, plan.gate.tiles * tile)
        d_output = d_output + x.d_sums[chunk, block]
    d_output, residual = product.operand(d_output), x.residual[:, block]
    d_written = x.d_written[:, block]
    d_reads, d_edits, d_tails, through_end, d_scores, d_system = carry

    def add_tile(n: Array, found: tuple) -> tuple:
        d_reads, d_edits, d_tails, through_end = found
        inside = (token >= n * tile) & (token < (n + 1) * tile)
        state, d_state = x.states[n, block, :], x.d_states[n, block, :]
        zero = jnp.zeros((), product.dtype)

        def of_tile(a: Array) -> Array:
            return jnp.where(inside, a, zero)

        d_reads = d_reads + product(of_tile(d_output), state)
        d_edits = d_edits - product(of_tile(d_written), state)
        d_tails = d_tails + product(of_tile(residual), d_state)
        kept = jnp.sum(state.astype(jnp.float32) * d_state.astype(jnp.float32), axis=0)
        return d_reads, d_edits, d_tails, through_end + jnp.where(inside, kept[None, :], 0.0)

    found = jax.lax.fori_loop(0, SPAN // tile, add_tile, (d_reads, d_edits, d_tails, through_end))
    d_scores = d_scores + product(d_output, residual, tb=True)
    d_system = d_system - product(d_written, residual, tb=True)
    return *found, d_scores, d_system


def _tile_cumsum(plan: Plan, x: Array) -> Array:
    """Sum from the start of each tile, [span, K]."""
    tile = plan.tiles.chunk
    return jnp.cumsum(x.reshape(-1, tile, x.shape[1]), axis=1).reshape(x.shape)


def _tile_sums(plan: Plan, x: Array) -> Array:
    """Sum over each tile, at each of its tokens."""
    tiles = x.reshape(-1, plan.tiles.chunk, x.shape[1])
    return jnp.broadcast_to(jnp.sum(tiles, axis=1)[:, None, :], tiles.shape).reshape(x.shape)


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
    arguments: list = [x]
    in_specs: list = [views.inputs(x, SPAN // plan.tiles.chunk)]
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

    def sums(self, a: Any) -> pl.BlockSpec:
        """All of the head's gate chunks, [B, chunks, N, V]."""
        shape = (None, a.shape[1], None, a.shape[3])
        return pl.BlockSpec(shape, lambda t, b, i: (b, 0, jax.lax.div(i, self.blocks), 0))

    def inputs(self, x: SpanInputs, tiles: int) -> SpanInputs:
        """All of the inputs."""
        return SpanInputs(
            query=self.keys(x.query),
            key=self.keys(x.key),
            decay=jax.tree.map(self.keys, x.decay),
            erase=self.keys(x.erase),
            d_output=self.values(x.d_output),
            d_sums=None if x.d_sums is None else self.sums(x.d_sums),
            residual=self.values(x.residual),
            d_written=self.values(x.d_written),
            states=self.states(x.states, tiles),
            d_states=self.states(x.d_states, tiles),
        )
