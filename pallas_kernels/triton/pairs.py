"""dP and dT of a span's tokens with each other, and the gradients of v and w; parallel over spans.

    dP = dO Rᵀ      dT = −dW Rᵀ      dv = w ⊙ dW      dw = v ⊙ dW

W = Z − Ē S_0 is what a tile writes. Made once here, since every block of key channels of the
gradients' kernel needs them (`gradients.py`). GDN-2, arXiv 2605.22791.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.triton.head_decay import pair_factors
from pallas_kernels.triton.plan import Plan
from pallas_kernels.triton.span import gate_block, matrices, matrices_view, span_view

VALUE_BLOCK_BYTES = 256  # of operands at once: more would not fit the cards of 99 KB


class PairInputs(NamedTuple):
    """What the pairs of a part are made of.

    Attributes:
      value, write: of the whole sequence [B, T, N, V], [B, T, N, V or 1].
      d_output: of the part or the whole [B, T, N, V]: gradient of the outputs, before the scale.
      residual, d_written: R and the gradient of W, of the part [B, T, N, V].
      log_decay: g of the whole sequence [B, T, H, 1] where it is one per head, else None.
    """

    value: Any
    write: Any
    d_output: Any
    residual: Any
    d_written: Any
    log_decay: Any = None


class Pairs(NamedTuple):
    """What the pairs' kernel leaves behind.

    Attributes:
      squares: [B, T, N, 2 · span] of the part in the products' dtype: scale · dP and dT, each
        mirrored at its diagonal, zero on it and outside the tiles; times 2^D where the log-decay is
        one per head.
      diagonal: of scale · dP [B, T, N, 1] float32, of the part.
      value, write: gradients [B, T, N, V] and [B, T, N, V or 1] of the whole sequence, the part's
        rows written.
    """

    squares: Any
    diagonal: Any
    value: Any
    write: Any


def _pairs_kernel(m: Any, x: PairInputs, *refs: Any, plan: Plan) -> None:
    out: Pairs
    *_continued, out = refs  # outputs of other parts, which this one continues, come first
    product, operand = plan.product, plan.product.operand
    width = x.residual.shape[1]
    zero = jnp.zeros((SPAN, SPAN), jnp.float32)
    lower_scores = upper_scores = lower_system = upper_system = zero
    d_write = jnp.zeros((SPAN,), jnp.float32)
    count = min(width, VALUE_BLOCK_BYTES // product.dtype.itemsize)
    for first in range(0, width, count):
        block = pl.ds(first, count)
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
    inside = ((row ^ column) < plan.tiles.chunk) & (row != column)
    diagonal = jnp.sum(jnp.where(row == column, lower_scores, 0.0), axis=1)
    out.diagonal[...] = plan.scale * diagonal[:, None]
    scores = plan.scale * jnp.where(row > column, lower_scores, upper_scores)
    system = jnp.where(row > column, lower_system, upper_system)
    if x.log_decay is not None:
        earlier, later = (pair_factors(plan, m, x.log_decay, later) for later in (False, True))
        factors = jnp.where(row > column, earlier, later)
        scores, system = scores * factors, system * factors
    out.squares[:, :SPAN] = operand(jnp.where(inside, scores, 0.0))
    out.squares[:, SPAN:] = operand(jnp.where(inside, system, 0.0))


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
    diagonal = jax.ShapeDtypeStruct((batch, length, heads, 1), jnp.float32)
    made = Pairs(
        squares, diagonal, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x.value, x.write))
    )

    def see(a: Any) -> pl.BlockSpec:
        return span_view(a, heads, spans, part)

    weighted = x.log_decay is not None
    arguments: list = [matrices(plan) if weighted else None, x]
    in_specs: list = [matrices_view() if weighted else None, jax.tree.map(see, x)]
    out_specs = jax.tree.map(see, made)
    options = plan.compile_options(plan.tiles.parallel_warps)
    if before is not None:
        first = len(jax.tree.leaves(arguments))
        options["input_output_aliases"] = {first: 2, first + 1: 3}
        arguments.append(before[2:])
        in_specs.append(out_specs[2:])
    (found,) = pl.pallas_call(
        functools.partial(_pairs_kernel, plan=plan),
        grid=(spans, batch, heads),
        in_specs=tuple(in_specs),
        out_specs=(out_specs,),
        out_shape=(made,),
        **options,
    )(*arguments)
    return found
