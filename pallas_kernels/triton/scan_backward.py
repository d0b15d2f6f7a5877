"""The backward inter-chunk scan, last tile to first: what carries gradient from tile to tile.

    dR = Pᵀ dO + K_tail dS        dW = Aᵀ dR        dS ← Diag(γ_C) dS + (γ⊙q)ᵀ dO − Ēᵀ dW

with W = Z − Ē S_0, whose gradient is that of Z. Under the content gate the gradient of a chunk's
content is found on the way (it needs dĒ and dT, summed over the chunk) and joins the gradient of
every output of the chunk before. The rest is parallel over tiles (`gradients`). Transposed as in
`scan`; GDN-2, arXiv 2605.22791, and CARVE, arXiv 2606.27229.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.blocks.wy import Array
from pallas_kernels.triton import ptx, ptx_scan, solve
from pallas_kernels.triton.plan import WHOLE, Cut, Gate, Plan, memory_view, rows, view
from pallas_kernels.triton.scan import own_block, tile_at
from pallas_kernels.triton.span import BK_DECAYED, K_LEVELS, K_TO_END, Q_DECAYED, Scores


class GateInputs(NamedTuple):
    """What the backward scan reads under a content gate.

    Attributes:
      erase: b of the part [B, T, N, K].
      slope: its derivative in the logits, likewise.
      contents: of the gate chunks [B, chunks, N, V] float32.
      residual: R [B, T, N, V].
      states: at the start of each tile, transposed [B, T/C, N, V, K].
      d_sums: gradient of the sums of outputs, from what comes after [B, chunks, N, V] float32.
      mean: [B, chunks] float32: of the sum of the chunk before, what makes this chunk's content.
      down, up: the projections [N, V, R] and [N, R, K].
    """

    erase: Any
    slope: Any
    contents: Any
    residual: Any
    states: Any
    d_sums: Any
    mean: Any
    down: Any
    up: Any


class BackwardScanOutputs(NamedTuple):
    """What the backward scan leaves behind, for one part.

    Attributes:
      d_written: of W and Z [B, T, N, V].
      d_states: of the state at the end of each tile, transposed [B, T/C + 1, N, V, K]; the last
        entry is the one before the first tile. Of a part in stretches, each has its own entries,
        and as many more as a span has tiles.
      d_memory: of the state before each row of the launch, transposed [B, N, V, K] float32.
      d_sums: of the sums of outputs, all told [B, chunks, N, V] float32.
      d_output: of the outputs, the content's share added [B, T, N, V] in the products' dtype.
      d_shift: of the logits' shift [B, chunks, N, K] float32.
    """

    d_written: Any = None
    d_states: Any = None
    d_memory: Any = None
    d_sums: Any = None
    d_output: Any = None
    d_shift: Any = None


class _Inputs(NamedTuple):
    """Views of one program; `gate` is None for the plain rule."""

    scores: Scores
    d_output: Any
    d_memory: Any
    gate: Any
    zero: Any


def _content_gradient(gate: Gate, d_shift: Array, content: Array, down: Array, up: Array) -> Array:
    """Gradient of a content [V] from that of its shift [K]."""
    if gate.stop_gradient:
        return jnp.zeros_like(content)
    d_low_rank = jnp.sum(up * d_shift[None, :], axis=1)
    d_content = jnp.sum(down * d_low_rank[None, :], axis=1)
    if gate.norm_eps is None:
        return d_content
    inverse = jax.lax.rsqrt(jnp.sum(content * content, axis=0) / gate.channels + gate.norm_eps)
    along = jnp.sum(content * d_content, axis=0) / gate.channels
    return inverse * (d_content - inverse * inverse * along * content)


# Its name is that of its launches in budgets, limits and dated results.
def _walk_back_kernel(inputs: _Inputs, out: BackwardScanOutputs, *, plan: Plan) -> None:
    scores, g, product, tile = inputs.scores, inputs.gate, plan.product, plan.tiles.chunk
    length, channels = inputs.d_output.shape[0], out.d_memory.shape[1]
    count = length // tile

    def step(i: Array, carry: tuple) -> tuple:
        d_memory, *d_seen = carry
        n = count - 1 - i
        zero = inputs.zero[0]
        # Rows that are known only now, and twice over: what is computed of them would else live
        # through the loop, or from its first use to its last, and spill.
        start = n * tile if g is None else n * tile + zero
        here = pl.ds(start if g is None else start + zero, tile)
        if g is None:
            d_output = product.operand(rows(inputs.d_output, start, tile).T * plan.scale)
        else:
            whole, d_output = _raise_output(plan, inputs.d_output[here, :], d_seen[0], zero)
            out.d_output[here, :] = whole
            d_output = ptx.fence(d_output).T
        k_to_end = tile_at(scores.tiles, here, K_TO_END, channels)
        d_residual = product(d_memory, k_to_end, tb=True)
        d_residual = d_residual + product(d_output, own_block(scores.squares, 0, start, tile))
        q_decayed = tile_at(scores.tiles, here, Q_DECAYED, channels)
        d_memory = d_memory * scores.ends[n, :][None, :] + product(d_output, q_decayed)
        d_written = product(d_residual, own_block(scores.squares, SPAN, start, tile))
        d_written = product.operand(d_written)
        if out.d_written is not None:
            out.d_written[here, :] = ptx.fence(d_written).T
        bk_decayed = tile_at(scores.tiles, here, BK_DECAYED, channels)
        if g is not None:
            added = _shift_gradient(plan, inputs, n, here, d_written)
            bk_decayed = ptx.times(product.operand(g.erase[here, :]), bk_decayed)
        d_memory = d_memory + product(ptx_scan.minus(d_written), bk_decayed)
        if out.d_states is not None:
            # Stored where few values live: in the iteration before, for the tile that comes next.
            before = jax.lax.rem(n + count, count + 1)
            out.d_states[before + zero] = d_memory.astype(out.d_states.dtype)
        if g is None:
            return (d_memory,)
        return d_memory, *_previous_content(plan.gate, n, g, out, zero, added, *d_seen)

    carry: tuple = (inputs.d_memory[...],)
    if out.d_states is not None:
        out.d_states[count - 1] = carry[0].astype(out.d_states.dtype)
    if g is not None:
        carry += (g.d_sums[g.d_sums.shape[0] - 1, :], jnp.zeros((channels,), jnp.float32))
    d_memory, *_ = jax.lax.fori_loop(0, count, step, carry)
    # A row that is known only now keeps the addresses of this store from living through the loop.
    out.d_memory[pl.ds(inputs.zero[0], d_memory.shape[0]), :] = d_memory


def _raise_output(plan: Plan, d_output: Array, d_sum: Array, zero: Array) -> tuple:
    """dO [C, V] with the content's share, and that as the products' operand."""
    dtype = plan.product.dtype
    nothing = jnp.zeros(d_output.shape, dtype)
    # In a loop of one turn, which Triton does not repeat in another layout.
    return solve.once(
        lambda _: ptx_scan.raised(d_output, d_sum, plan.scale, dtype), zero, (nothing, nothing)
    )


def _shift_gradient(plan: Plan, inputs: _Inputs, n: Array, here: Any, d_written: Array) -> Array:
    """Gradient of the logits' shift [K] from one tile: of b, by the slope, summed over its tokens.

    Held [K, C]: with 8 warps each owns some key channels.
    """
    product, g, zero = plan.product, inputs.gate, inputs.zero[0]
    tile, channels = here.size, g.slope.shape[1]
    loaded = plan.unfenced
    ordered = solve.order(tile, zero)

    def kept(place: Any) -> Array:
        return inputs.scores.tiles[here, pl.ds(place * channels, channels)]

    # dTᵀ, in a loop of one turn: see `solve.once`.
    d_system = solve.once(
        lambda _: loaded(g.residual[here, :], d_written), zero, jnp.zeros((tile, tile), jnp.float32)
    )
    d_system = product.operand(d_system)
    nothing = jnp.zeros((channels, tile), jnp.float32)
    bk_decayed = kept(BK_DECAYED).T
    d_erase = ptx_scan.add_times(nothing, bk_decayed, loaded(g.states[n], d_written, ta=True))

    def add(d_erase: Array, d_level: Array, rows: Any, columns: Any) -> Array:
        found = loaded(kept(K_LEVELS + columns), d_level, ta=True)
        return ptx_scan.add_times(d_erase, kept(K_LEVELS + rows).T, found)

    def add_level(place: Any, d_erase: Array) -> Array:
        low = jnp.right_shift(1 << plan.levels[0], place)
        return add(d_erase, ptx_scan.counted_level(d_system, ordered, low), place, place)

    if plan.levels:
        # Up to what only Triton knows to be a constant: LLVM would unroll it, and spill.
        d_erase = jax.lax.fori_loop(0, len(plan.levels) + zero, add_level, d_erase)
    if plan.anchor > 1:
        place = len(plan.levels)
        d_level = ptx_scan.below(d_system, ordered, plan.anchor)
        d_erase = add(d_erase, d_level, place, place + 1)
    weighted = ptx_scan.add_times(nothing, g.slope[here, :].T, d_erase)
    return solve.once(lambda c: c - jnp.sum(weighted, 1), zero, jnp.zeros((channels,), jnp.float32))


def _previous_content(
    gate: Gate,
    n: Array,
    g: GateInputs,
    out: BackwardScanOutputs,
    zero: Array,
    added: Array,
    d_sum: Array,
    d_shift: Array,
) -> tuple[Array, Array]:
    """Gradients carried to tile n − 1: of its chunk's sum of outputs, and of its chunk's shift."""
    chunk = jax.lax.div(n, gate.tiles)
    d_shift = d_shift + added
    out.d_sums[chunk, :] = d_sum
    out.d_shift[chunk, :] = d_shift
    down, up = g.down[pl.ds(zero, g.down.shape[0]), :], g.up[pl.ds(zero, g.up.shape[0]), :]
    d_content = _content_gradient(gate, d_shift, g.contents[chunk, :], down, up)
    before = jnp.maximum(chunk - 1, 0)
    d_before = g.d_sums[before, :] + g.mean[chunk] * d_content
    first = jax.lax.rem(n, gate.tiles) == 0
    return jnp.where(first, d_before, d_sum), jnp.where(first, 0.0, d_shift)


def scan_backward(
    plan: Plan,
    scores: Scores,
    d_output: Array,
    d_memory: Array,
    part: int,
    gate: GateInputs | None = None,
    *,
    ends: bool = False,
    cut: Cut = WHOLE,
) -> BackwardScanOutputs:
    """Scan one part, or stretches of it side by side, backward from the gradient of the last state
    [B, N, V, K] (transposed), B counting stretches.

    Args:
      plan: what is static.
      scores: of the part, with A.
      d_output: of the whole sequence [B, T, N, V].
      d_memory: of the state after the part.
      part: which one.
      gate: the content gate's arrays of the part, if there is one.
      ends: return only the gradients of the first states.
      cut: the stretches.
    """
    batch, length = scores.tiles.shape[:2]
    launched, heads, width, channels = d_memory.shape
    block = width if gate is not None else min(width, plan.tiles.block_value)
    dtype = plan.product.dtype

    def made(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    out = BackwardScanOutputs(d_memory=jax.ShapeDtypeStruct(d_memory.shape, jnp.float32))
    out_specs = BackwardScanOutputs(d_memory=memory_view(d_memory, block))
    if not ends:
        states = length // plan.tiles.chunk + spare_states(plan, cut)
        out = out._replace(
            d_written=made(length, heads, width, dtype=dtype),
            d_states=made(states, heads, width, channels, dtype=dtype),
        )
        out_specs = out_specs._replace(
            d_written=view(out.d_written, heads, length, block=block, cut=cut),
            d_states=memory_view(out.d_states, block, cut),
        )
    if gate is not None:
        chunks = gate.contents.shape[1]
        out = out._replace(
            d_sums=made(chunks, heads, width),
            d_output=made(length, heads, width, dtype=dtype),
            d_shift=made(chunks, heads, channels),
        )
        out_specs = out_specs._replace(
            d_sums=view(out.d_sums, heads, chunks),
            d_output=view(out.d_output, heads, length),
            d_shift=view(out.d_shift, heads, chunks),
        )
    inputs = _Inputs(scores, d_output, d_memory, gate, jnp.zeros((1,), jnp.int32))
    in_specs = _Inputs(
        scores=jax.tree.map(lambda a: view(a, heads, a.shape[1], cut=cut), scores),
        d_output=view(d_output, heads, length, part, block, cut),
        d_memory=memory_view(d_memory, block),
        gate=None if gate is None else _gate_views(gate, heads, length, part),
        zero=pl.BlockSpec((1,), lambda b, n, v: (0,)),
    )
    (found,) = pl.pallas_call(
        functools.partial(_walk_back_kernel, plan=plan),
        grid=(launched, heads, width // block),
        in_specs=(in_specs,),
        out_specs=(out_specs,),
        out_shape=(out,),
        **plan.compile_options(plan.tiles.warps, plan.tiles.backward_stages),
    )(inputs)
    return found


def spare_states(plan: Plan, cut: Cut) -> int:
    """Entries of `BackwardScanOutputs.d_states` beyond one per tile: of each stretch as many as a
    span has tiles, so that the gradients' kernel finds every span at a whole number of them."""
    return 1 if cut.stretches == 1 else cut.stretches * (SPAN // plan.tiles.chunk)


def _gate_views(gate: GateInputs, heads: int, length: int, part: int) -> GateInputs:
    chunks = gate.contents.shape[1]
    return GateInputs(
        erase=view(gate.erase, heads, length),
        slope=view(gate.slope, heads, length),
        contents=view(gate.contents, heads, chunks),
        residual=view(gate.residual, heads, length),
        states=memory_view(gate.states, gate.states.shape[3]),
        d_sums=view(gate.d_sums, heads, chunks),
        mean=pl.BlockSpec((None, chunks), lambda b, n, v: (b, 0)),
        down=pl.BlockSpec((None, *gate.down.shape[1:]), lambda b, n, v: (n, 0, 0)),
        up=pl.BlockSpec((None, *gate.up.shape[1:]), lambda b, n, v: (n, 0, 0)),
    )
