"""Gradients of a span's q, k, g and b, parallel over spans and blocks of key channels.

From what the backward scan left: the gradients of the outputs (the content's share added), of
W = Z − Ē S_0 and of the states at the ends of the tiles; and from dP and dT (`pairs.py`).

Every decayed product exp(G_r − G_s) between two tokens gives G_r what it takes from G_s, so that,
apart from the diagonal of P,

    dG = q ⊙ dq + (b⊙k) ⊙ d(b⊙k) − k ⊙ dk,      dg_i = Σ_{r ≥ i} dG_r over the tile

(gate-aware: b sits inside; GDN-2, arXiv 2605.22791). A level's rows and columns are disjoint, so
one product with a symmetric square serves both.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.blocks import decay
from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.blocks.wy import Array
from pallas_kernels.triton import head_decay, ptx, ptx_gradients
from pallas_kernels.triton.pairs import VALUE_BLOCK_BYTES
from pallas_kernels.triton.plan import Operands, Plan, summed
from pallas_kernels.triton.span import (
    gate_block,
    load_block,
    matrices,
    matrices_view,
)


class SpanInputs(NamedTuple):
    """What the gradients of a part are made of.

    Attributes:
      query, key: of the whole sequence [B, T, H, K].
      log_decay: g of the whole sequence [B, T, H, K or 1].
      erase: b [B, T, H or N, K or 1], of the part or the whole.
      pairs, diagonal: [B, T, N, 2 · span], [B, T, N, 1] of the part.
      d_output: [B, T, N, V] of the part or the whole, before the scale.
      residual, d_written: R and the gradient of W, of the part [B, T, N, V].
      states, d_states: S at the start and its gradient at the end of each tile [B, T/C, N, V, K];
        behind each stretch's, `d_states` may have more entries (`scan_backward.spare_states`).
      slope: db / dlogits under a content gate, of the part [B, T, N, K]; the gradient is then that
        of the logits.
    """

    query: Any
    key: Any
    log_decay: Any
    erase: Any
    pairs: Any
    diagonal: Any
    d_output: Any
    residual: Any
    d_written: Any
    states: Any
    d_states: Any
    slope: Any = None


class SpanGradients(NamedTuple):
    """Gradients [B, T, N, X] of the whole sequence, the part's rows written; X = 1 for each
    block of key channels where the gate has one channel."""

    query: Any
    key: Any
    log_decay: Any
    erase: Any


def _gradients_kernel(m: Any, x: SpanInputs, *refs: Any, plan: Plan) -> None:
    out: SpanGradients
    *_continued, out = refs  # outputs of other parts, which this one continues, come first
    channels = x.query.shape[1]
    block = pl.ds(0, channels)
    gates = Operands(x.query, x.key, None, x.log_decay, x.erase, None)
    a = load_block(plan, gates, block)
    scores, system = _squares(plan, x)
    if head_decay.per_head(x.log_decay):
        sums = _head_products(plan, a, scores, system)
    else:
        sums = _level_products(plan, m, a, scores, system)
    sums, d_log_decay = _state_products(plan, m, x, a, sums)
    d_query, d_bk, d_key = sums

    pieces = ptx_gradients.decay_gradient(a.query, a.bk, a.key, sums, plan.pieces)
    d_log_decay = _summed_onto(plan, d_log_decay, m[decay.SUFFIX], pieces)
    diagonal = jnp.broadcast_to(x.diagonal[...], d_query.shape)
    d_query = ptx_gradients.multiply_add(a.key, diagonal, d_query)
    d_key = ptx_gradients.multiply_add(_erase(x, block, channels), d_bk, d_key)
    d_key = ptx_gradients.multiply_add(a.query, diagonal, d_key)
    out.query[...] = d_query.astype(out.query.dtype)
    out.key[...] = d_key.astype(out.key.dtype)
    d_erase = a.key.astype(jnp.float32) * d_bk
    if x.slope is not None:
        d_erase = d_erase * x.slope[...].astype(jnp.float32)
    for ref, gate in ((out.log_decay, d_log_decay), (out.erase, d_erase)):
        if ref.shape[1] != channels:
            gate = jnp.sum(gate, axis=1)[:, None]
        ref[...] = gate.astype(ref.dtype)


def _summed_onto(plan: Plan, found: Array, matrix: Array, pieces: list[Array]) -> Array:
    """found + `summed`, in the products' own accumulators."""
    for piece in pieces:
        found = found + plan.distance(matrix, piece)
    return found


def _erase(x: SpanInputs, block: Any, channels: int) -> Array:
    """b of a block of key channels, in its own dtype where it has one value per channel."""
    if x.erase.shape[1] == channels:
        return x.erase[:, block]
    return gate_block(x.erase, block, channels)


def _squares(plan: Plan, x: SpanInputs) -> tuple[Array, Array]:
    """dP and dT, laid out as a product leaves its result, which is how one takes its left
    operand: what is masked for a level then goes into its product without passing through shared
    memory. The product of nothing is there for its layout."""
    dtype = plan.product.dtype
    nothing = plan.product(jnp.zeros((SPAN, 16), dtype), jnp.zeros((16, SPAN), dtype))
    return (
        ptx_gradients.laid_out_as(x.pairs[:, :SPAN], nothing),
        ptx_gradients.laid_out_as(x.pairs[:, SPAN:], nothing),
    )


def _state_products(plan: Plan, m: Any, x: SpanInputs, a: Any, sums: tuple) -> tuple[tuple, Array]:
    """Gradients of q, b⊙k and k by way of the states; the share of g's gradient that all tokens of
    a tile have in common: of the state that passes it whole, and of the keys that reach its end
    (which k ⊙ dk takes away again from those that do not decay them)."""
    over_states = _over_states(plan, x)
    start = ptx.exp2(summed(plan, m[decay.FROM_START], a.pieces))
    d_query = ptx_gradients.multiply_add(plan.scale * start, over_states(D_Q), sums[0])
    d_bk = ptx_gradients.multiply_add(-start, over_states(D_BK), sums[1])
    end = ptx.exp2(summed(plan, m[decay.TO_END], a.pieces))
    common = start * end * over_states(D_DECAY)
    d_k_to_end = end * over_states(D_K)
    through = ptx_gradients.halved_product(a.key, d_k_to_end, plan.pieces)
    common = _summed_onto(plan, common, m[decay.TILE], through)
    return (d_query, d_bk, sums[2] + d_k_to_end), common


D_Q, D_BK, D_DECAY, D_K = range(4)  # what a sum of `_over_states` is a share of


def _over_states(plan: Plan, x: SpanInputs) -> Callable[[int], Array]:
    """Sums over the value channels of each token's tile, float32 [span, K]: dO S, dW S, 1 (S ⊙ dS)
    and R dS, each when it is asked for; all at once, in a loop, where there are several tiles or
    blocks of value channels, which would else be in shared memory together."""
    product, tile = plan.product, plan.tiles.chunk
    channels, width = x.query.shape[1], x.residual.shape[1]
    count = min(width, VALUE_BLOCK_BYTES // product.dtype.itemsize)
    tiles = SPAN // tile
    row = jax.lax.broadcasted_iota(jnp.int32, (SPAN, 1), 0)

    def of_tile(which: int, n: Any, block: Any) -> Array:
        if which == D_DECAY:
            left = jnp.ones((SPAN, count), product.dtype)
            right = ptx.times(x.states[n, block, :], x.d_states[n, block, :])
        else:
            rows = {D_Q: x.d_output, D_BK: x.d_written, D_K: x.residual}[which]
            left = product.operand(rows[:, block])
            right = (x.d_states if which == D_K else x.states)[n, block, :]
        found = product(left, right)
        inside = (row >= n * tile) & (row < (n + 1) * tile)
        return found if tile == SPAN else jnp.where(inside, found, 0.0)

    if tile == SPAN and count == width:
        return lambda which: of_tile(which, 0, pl.ds(0, width))

    def step(i: Array, found: tuple) -> tuple:
        block = pl.ds(jax.lax.div(i, tiles) * count, count)
        n = jax.lax.rem(i, tiles)
        return tuple(sum + of_tile(which, n, block) for which, sum in enumerate(found))

    zeros = (jnp.zeros((SPAN, channels), jnp.float32),) * 4
    found = jax.lax.fori_loop(0, tiles * (width // count), step, zeros)
    return lambda which: found[which]


def _head_products(plan: Plan, a: Any, scores: Array, system: Array) -> tuple:
    """`_level_products` under one log-decay per head, whose factors are in dP and dT already."""
    row = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 1)
    product, zero = plan.product, jnp.zeros((), plan.product.dtype)
    earlier = [jnp.where(row > column, square, zero) for square in (scores, system)]
    later = [jnp.where(row < column, square, zero) for square in (scores, system)]
    d_key = product(later[0], a.query) + product(later[1], a.bk)
    return product(earlier[0], a.key), product(earlier[1], a.key), d_key


def _level_products(plan: Plan, m: Any, a: Any, scores: Array, system: Array) -> tuple:
    """What pairs of tokens within a tile add to the gradients of q, b⊙k and k."""
    product = plan.product
    row = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 1)
    paired = (row ^ column) | 1  # alike in the two columns of a register

    def add_level(level: Array, sums: tuple) -> tuple:
        distance = summed(plan, m[level], a.pieces)
        row = jax.lax.broadcasted_iota(jnp.int32, distance.shape, 0)
        upper = -((row >> level) & 1)
        q_decayed, bk_decayed, factor = ptx_gradients.decayed_choices(
            upper, a.query, a.key, a.bk, distance
        )
        of_scores, of_system = ptx_gradients.on_level(scores, system, paired, level)
        d_query, d_bk, d_key = sums
        found = product(of_scores, q_decayed)
        d_query, d_key = ptx_gradients.accumulate(d_query, d_key, found, factor, upper)
        found = product(of_system, bk_decayed)
        d_bk, d_key = ptx_gradients.accumulate(d_bk, d_key, found, factor, upper)
        return d_query, d_bk, d_key

    # Rolled: unrolled, the compiler puts off the sums of a level into the next ones, and spills.
    sums = (jnp.zeros(a.query.shape, jnp.float32),) * 3
    if plan.levels:
        sums = jax.lax.fori_loop(plan.levels[-1], plan.levels[0] + 1, add_level, sums)
    return sums if plan.anchor == 1 else _anchored_products(plan, m, a, scores, system, sums)


def _anchored_products(
    plan: Plan, m: Any, a: Any, scores: Array, system: Array, sums: tuple
) -> tuple:
    """The same inside blocks of A tokens, whose rows and columns have factors of their own."""
    product, operand = plan.product, plan.product.operand
    row = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 1)
    inside, zero = (row ^ column) < plan.anchor, jnp.zeros((), product.dtype)
    below, above = inside & (row > column), inside & (row < column)
    distance = summed(plan, m[decay.FROM_ANCHOR], a.pieces)
    columns = ptx.decayed(a.key, -distance)
    q_decayed, bk_decayed, factor = ptx.decayed_pair(a.query, a.bk, distance)

    def masked(square: Array, where: Array) -> Array:
        return operand(jnp.where(where, square, zero))

    d_query, d_bk, d_key = sums
    d_query = d_query + factor * product(masked(scores, below), columns)
    d_bk = d_bk + factor * product(masked(system, below), columns)
    both = product(masked(scores, above), q_decayed) + product(masked(system, above), bk_decayed)
    return d_query, d_bk, d_key + ptx.exp2(-distance) * both


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
        """A block of key channels; of a gate of one channel that one (of its gradient, one
        per block)."""
        width = self.block if a.shape[3] == self.channels else 1
        return self.rows(a, width, by_block=a.shape[3] > 1)

    def values(self, a: Any) -> pl.BlockSpec:
        """All value channels."""
        return self.rows(a, a.shape[3], by_block=False)

    def states(self, a: Any, tiles: int) -> pl.BlockSpec:
        """A block of key channels of the states of the span's tiles, [B, T/C, N, V, K]."""
        stretches = (a.shape[1] - self.spans * tiles) // tiles  # that have spare entries

        def place(t: Any, b: Any, i: Any) -> tuple:
            span = t + jax.lax.div(t, self.spans // stretches) if stretches > 1 else t
            return b, span, jax.lax.div(i, self.blocks), 0, jax.lax.rem(i, self.blocks)

        return pl.BlockSpec((None, tiles, None, a.shape[3], self.block), place)

    def inputs(self, x: SpanInputs, tiles: int) -> SpanInputs:
        """All of the inputs."""
        return SpanInputs(
            query=self.keys(x.query),
            key=self.keys(x.key),
            log_decay=self.keys(x.log_decay),
            erase=self.keys(x.erase),
            pairs=self.values(x.pairs),
            diagonal=self.values(x.diagonal),
            d_output=self.values(x.d_output),
            residual=self.values(x.residual),
            d_written=self.values(x.d_written),
            states=self.states(x.states, tiles),
            d_states=self.states(x.d_states, tiles),
            slope=None if x.slope is None else self.keys(x.slope),
        )
