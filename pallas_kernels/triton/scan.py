"""The forward inter-chunk scan: one program for each head (and block of value channels).

    b = gate(content)   T, A (under a content gate)   R = A (Z − Ē S)   O = (γ⊙q) S + P R   S

The state is held transposed, Sᵀ [V, K]; R and O as [V, C]: with 8 warps each owns some value
channels for good, and only [C, K] and [C, C] tiles move between warps. Notation of arXiv
2605.22791 (GDN-2) and 2606.27229 (CARVE); layouts are those of the public rules, [B, T, H, X].
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.blocks.wy import Array
from pallas_kernels.triton import ptx, ptx_scan
from pallas_kernels.triton.plan import WHOLE, Content, Cut, Gate, Plan, memory_view, view
from pallas_kernels.triton.solve import Solver, solver
from pallas_kernels.triton.span import BK_DECAYED, K_TO_END, Q_DECAYED, Scores, holds_inverse


def erase_shift(gate: Gate, content: Array, down: Array, up: Array) -> Array:
    """m P_down P_up [K] of one head's content [V]."""
    if gate.norm_eps is not None:
        square = jnp.sum(content * content, axis=0) / gate.channels
        content = content * jax.lax.rsqrt(square + gate.norm_eps)
    low_rank = jnp.sum(content[None, :] * down, axis=1)
    return jnp.sum(low_rank[None, :] * up, axis=1)


def minus_erase_gate(gate: Gate, logits: Array, shift: Array) -> Array:
    """−b [C, K] of logits as they are read, rounded as a gate handed to the plain rule would be."""
    if logits.dtype == ptx.BF16 and gate.dtype == logits.dtype.name:
        return ptx_scan.minus_gate(logits, shift, gate.scale)
    erase = gate.scale * jax.nn.sigmoid(logits.astype(jnp.float32) + shift[None, :])
    return -erase.astype(gate.dtype)


class ScanOutputs(NamedTuple):
    """What the forward scan leaves behind.

    Attributes:
      output: [B, T, N, V] of the whole sequence, the part's rows written.
      memory: the last state of each row of the launch, transposed [B, N, V, K] float32.
      sums: of the outputs in each of the part's gate chunks [B, chunks, N, V] float32.
      residual: R [B, T, N, V] of the part.
      states: at the start of each tile, transposed [B, T/C, N, V, K].
      starts: of a part that was scanned in stretches, what its backward pass begins from.
    """

    output: Any = None
    memory: Any = None
    sums: Any = None
    residual: Any = None
    states: Any = None
    starts: Any = None


def tile_at(tiles: Any, here: Any, place: int, channels: int) -> Array:
    """One of the tiles that lie side by side in `Scores.tiles`."""
    return tiles[here, place * channels : (place + 1) * channels]


def own_block(ref: Any, first: int, start: Any, tile: int) -> Array:
    """The [C, C] block of a tile among rows against a whole span, from column `first` on."""
    return ref[pl.ds(start, tile), pl.ds(first + (start & (SPAN - tile)), tile)]


class ScanOperands(NamedTuple):
    """Inputs of the rule that the scan reads itself, of the whole sequence or of the part.

    Attributes:
      value: v [B, T, N, V]; None where nothing is written.
      unapplied_erase: b, or its logits under a content gate, [B, T, H, K or 1], for the scan to
        apply; None where `Scores.tiles` hold b⊙k already.
      write: w [B, T, N, V or 1].
    """

    value: Any
    unapplied_erase: Any
    write: Any


class _ScanInputs(NamedTuple):
    """Views of one program: [T, X] but for memory [V, K] and the content gate's."""

    x: ScanOperands
    scores: Scores
    memory: Any
    content: Content | None
    zero: Any


# Its name is that of its launches in budgets, limits and dated results.
def _walk_kernel(inputs: _ScanInputs, *refs: Any, plan: Plan) -> None:
    out: ScanOutputs
    *_continued, out = refs  # an output of earlier parts, which this one continues, comes first
    x, scores, content = inputs.x, inputs.scores, inputs.content
    product, tile = plan.product, plan.tiles.chunk
    length, channels = scores.tiles.shape[0], out.memory.shape[1]

    def step(n: Array, carry: tuple) -> tuple:
        memory, *seen = carry
        start, zero = n * tile, inputs.zero[0]
        here = pl.ds(start, tile)
        # Rows that are known only now: their addresses would else live through the solution, and
        # spill.
        late = here if content is None else pl.ds(start + zero, tile)
        if out.states is not None:
            out.states[n] = memory.astype(out.states.dtype)
        shift = None
        if content is not None:
            down = content.down[pl.ds(zero, content.down.shape[0]), :]
            up = content.up[pl.ds(zero, content.up.shape[0]), :]
            shift = erase_shift(plan.gate, seen[0], down, up)
        residual = _residual(plan, inputs, memory, here, late, zero, shift)
        if out.residual is not None:
            out.residual[here, :] = residual.astype(out.residual.dtype).T
        if out.output is not None:
            output = product(memory, tile_at(scores.tiles, late, Q_DECAYED, channels), tb=True)
            own_scores = own_block(scores.squares, 0, late.start, tile)
            output = output + product(residual, own_scores, tb=True)
            output = output * plan.scale
            # Fenced, or the transposition would move up to the sum and compute it twice.
            out.output[late, :] = ptx.fence(output.astype(out.output.dtype)).T
        k_to_end = tile_at(scores.tiles, late, K_TO_END, channels)
        memory = memory * scores.ends[n + zero, :][None, :] + product(residual, k_to_end)
        if content is None and out.sums is not None:
            return memory, seen[0] + jnp.sum(output, 1)
        if content is None:
            return (memory,)
        return memory, *_next_content(plan.gate, n, content, out.sums, jnp.sum(output, 1), *seen)

    carry: tuple = (inputs.memory[...],)
    if content is not None:
        carry += (content.content[...], content.partial_sum[...])
    elif out.sums is not None:
        carry += (jnp.zeros((x.value.shape[1],), jnp.float32),)
    count: Any = length // tile
    if tile >= 32:  # up to what only Triton knows to be a constant: fewer copies of what is carried
        count = count + inputs.zero[0]
    memory, *last = jax.lax.fori_loop(0, count, step, carry)
    if content is None and out.sums is not None:
        out.sums[0, :] = last[0]
    # A row that is known only now keeps the addresses of this store from living through the loop.
    out.memory[pl.ds(inputs.zero[0], memory.shape[0]), :] = memory


def _residual(
    plan: Plan,
    inputs: _ScanInputs,
    memory: Array,
    here: Any,
    late: Any,
    zero: Array,
    shift: Array | None,
) -> Array:
    """Rᵀ [V, C] = (A (Z − Ē S))ᵀ of one tile, as an operand.

    Args:
      plan: what is static.
      inputs: of the program.
      memory: Sᵀ [V, K] at the start of the tile.
      here: rows of the tile.
      late: the same rows, known only where the tile is worked on.
      zero: see `wy.order`.
      shift: of the erase logits [K], under a content gate.
    """
    x, scores, product = inputs.x, inputs.scores, plan.product
    tile, channels = plan.tiles.chunk, memory.shape[1]
    if x.unapplied_erase is None:
        bk_decayed = tile_at(scores.tiles, here, BK_DECAYED, channels)
        # R and what it is found of are negated here: fused adds take −v ⊙ w as they are.
        right = product(memory, bk_decayed, tb=True)
        if x.value is not None:
            right = right - _written(plan, x, here, zero)
        inverse = own_block(scores.squares, SPAN, here.start, tile)
        return ptx_scan.minus_rounded(product(right, inverse, tb=True), product.dtype)
    if shift is None:
        erase = jnp.broadcast_to(x.unapplied_erase[here, :], (tile, channels))
        minus = ptx_scan.minus(product.operand(erase))
    else:
        logits = x.unapplied_erase[here, :]
        minus = product.operand(minus_erase_gate(plan.gate, logits, shift))
    if holds_inverse(scores.squares):
        solve = Solver(own_block(scores.squares, SPAN, here.start, tile).T, ())
    else:
        solve = solver(plan, scores.tiles, here, minus, zero)
    bk_decayed = ptx.times(minus, tile_at(scores.tiles, here, BK_DECAYED, channels))
    right = product(memory, bk_decayed, tb=True) + _written(plan, x, late, zero)
    return product.operand(solve(product, right))


def _written(plan: Plan, x: ScanOperands, here: Any, zero: Array) -> Array:
    """(v ⊙ w)ᵀ [V, C] float32."""
    value, tile = x.value[here, :], here.size
    if plan.product.precision != "bf16" or x.write.shape[1] > 1 or value.dtype != ptx.BF16:
        return (value.astype(jnp.float32) * x.write[here, :].astype(jnp.float32)).T
    # Exact, and the transposition costs nothing.
    row = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 0) + zero
    column = jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 1)
    write = x.write[here, 0].astype(jnp.float32)
    diagonal = jnp.where(row == column, write[None, :], 0.0)
    return plan.unfenced(value, diagonal, ta=True)


def _next_content(
    gate: Gate, n: Array, content: Content, sums: Any, added: Array, now: Array, partial: Array
) -> tuple[Array, Array]:
    """Content and sum of the chunk's outputs after tile n, which adds `added`."""
    chunk = jax.lax.div(n, gate.tiles)
    partial = partial + added
    sums[chunk, :] = partial
    last = jax.lax.rem(n, gate.tiles) == gate.tiles - 1
    following = jnp.where(last, content.mean[chunk] * partial, now)
    return following, jnp.where(last, 0.0, partial)


def scan(
    plan: Plan,
    x: ScanOperands,
    scores: Scores,
    memory: Array,
    part: int,
    *,
    content: Content | None = None,
    output: Array | None = None,
    sums: bool = False,
    replay: bool = False,
    ends: bool = False,
    cut: Cut = WHOLE,
) -> ScanOutputs:
    """Scan one part of the sequence, or stretches of it side by side, from `memory` [B, N, V, K]
    (transposed), B counting stretches.

    Args:
      plan: what is static.
      x: what the scan reads of the inputs, and whether b is still to be applied.
      scores: of the part.
      memory: the state before the part.
      part: which one.
      content: under a content gate, unless b is known.
      output: of the whole sequence, whose parts before this one have been written.
      sums: sum the outputs of the part, which is one gate chunk whose b is known.
      replay: leave what the gradients need instead of the output.
      ends: return only the last states.
      cut: the stretches.
    """
    _, heads, width, channels = memory.shape
    batch, length = scores.tiles.shape[:2]
    block = width if content is not None else min(width, plan.tiles.block_value)

    def made(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    out = ScanOutputs(memory=jax.ShapeDtypeStruct(memory.shape, jnp.float32))
    out_specs = ScanOutputs(memory=memory_view(memory, block))
    if replay:
        dtype = plan.product.dtype
        residual = made(length, heads, width, dtype=dtype)
        states = made(length // plan.tiles.chunk, heads, width, channels, dtype=dtype)
        out = out._replace(residual=residual, states=states)
        out_specs = out_specs._replace(
            residual=view(residual, heads, length, block=block, cut=cut),
            states=memory_view(states, block, cut),
        )
    elif not ends:
        out = out._replace(output=made(*x.value.shape[1:], dtype=x.value.dtype))
        out_specs = out_specs._replace(output=view(out.output, heads, length, part, block, cut))
    if content is not None or sums:
        chunks = 1 if content is None else content.mean.shape[1]
        out = out._replace(sums=made(chunks, heads, width))
        out_specs = out_specs._replace(sums=view(out.sums, heads, chunks, block=block))
    return _call_scan(plan, x, scores, memory, part, content, output, out, out_specs, block, cut)


def _call_scan(
    plan: Plan,
    x: ScanOperands,
    scores: Scores,
    memory: Array,
    part: int,
    content: Content | None,
    output: Array | None,
    out: ScanOutputs,
    out_specs: ScanOutputs,
    block: int,
    cut: Cut,
) -> ScanOutputs:
    rows, heads, width, _ = memory.shape
    length = scores.tiles.shape[1]

    def seen(a: Any, block: int | None = None) -> Any:
        return None if a is None else view(a, heads, length, part, block, cut)

    if content is not None:
        down, up = content.down.swapaxes(1, 2), content.up.swapaxes(1, 2)
        content = content._replace(down=down, up=up)
    arguments: list = [_ScanInputs(x, scores, memory, content, jnp.zeros((1,), jnp.int32))]
    in_specs: list = [
        _ScanInputs(
            x=ScanOperands(
                value=seen(x.value, block),
                unapplied_erase=seen(x.unapplied_erase),
                write=seen(x.write, block),
            ),
            scores=jax.tree.map(lambda a: view(a, heads, a.shape[1], cut=cut), scores),
            memory=memory_view(memory, block),
            content=None if content is None else content_views(content),
            zero=pl.BlockSpec((1,), lambda b, n, v: (0,)),
        )
    ]
    options = plan.compile_options(plan.tiles.warps, plan.tiles.stages)
    if output is not None and out.output is not None:
        options["input_output_aliases"] = {len(jax.tree.leaves(arguments)): 0}
        arguments.append(output)
        in_specs.append(out_specs.output)
    (found,) = pl.pallas_call(
        functools.partial(_walk_kernel, plan=plan),
        grid=(rows, heads, width // block),
        in_specs=tuple(in_specs),
        out_specs=(out_specs,),
        out_shape=(out,),
        **options,
    )(*arguments)
    return found


def content_views(content: Content) -> Content:
    """What a program (b, n, v) sees of the content gate's arrays."""
    _, rank, width = content.down.shape
    channels, chunks = content.up.shape[1], content.mean.shape[1]
    row = pl.BlockSpec((None, None, width), lambda b, n, v: (b, n, 0))
    return Content(
        down=pl.BlockSpec((None, rank, width), lambda b, n, v: (n, 0, 0)),
        up=pl.BlockSpec((None, channels, rank), lambda b, n, v: (n, 0, 0)),
        content=row,
        partial_sum=row,
        mean=pl.BlockSpec((None, chunks), lambda b, n, v: (b, 0)),
    )
