"""The rule as one differentiable operation: kernels in order, part after part of the sequence.

Forward leaves behind the inputs, the state before each part (in stretches, before each of them, and
their maps [K, K] in float32), the sums of outputs of the gate chunks
and P of each span, with A where it is known before the scan (128 bytes per token and head in
bfloat16, 256 with A): the backward span kernel then finds A alone, or neither. Everything else is
found again. The trade: what a token needs for its gradients (decayed tiles, scores, inverse, R,
states) is 2 to 4 times its inputs (bfloat16, K = V = 128: GDN-2 3.1 KB per head against 1.8, CARVE
5.6 against 1.5); finding it again costs the kernels that are parallel over tiles and, since the
inverses then need no scan, a scan of the plain rule, about a quarter of CARVE's instructions per
tile. Parts keep even that small: the tiles of a part take at most about `PART_BYTES`, or
`SOLVED_PART_BYTES` where the scan finds the inverses: its tiles are three times as large, and a
launch of it costs some 10 µs besides (on an H200, B8 T4096 H16: the scans of 8 parts take 0.26 ms
less than those of 16, forward and backward).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import content, decay
from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.blocks.wy import Array
from pallas_kernels.call import kept
from pallas_kernels.tiling import Tiles, padded
from pallas_kernels.triton.gradients import SpanGradients, SpanInputs, gradients
from pallas_kernels.triton.head_decay import per_head
from pallas_kernels.triton.pairs import PairInputs, Pairs, pairs
from pallas_kernels.triton.plan import Content, Gate, Operands, Plan
from pallas_kernels.triton.scan import ScanOperands, ScanOutputs, scan
from pallas_kernels.triton.scan_backward import BackwardScanOutputs, GateInputs, scan_backward
from pallas_kernels.triton.span import K_LEVELS, Scores, holds_inverse, score
from pallas_kernels.triton.stretches import (
    for_few_heads,
    scan_stretches,
    scan_stretches_again,
    scan_stretches_backward,
)

PART_BYTES, SOLVED_PART_BYTES = 1 << 27, 1 << 28
MOST_PARTS = 32
LONG_CHUNK = 256  # tokens of a gate chunk that is worth a pass of the plain rule's kernels


class Inputs(NamedTuple):
    """The rule's inputs, padded; `erase` holds logits under a content gate.

    Attributes:
      query, key: [B, T, H, K].
      value: [B, T, N, V].
      log_decay, erase: [B, T, H, K or 1].
      write: [B, T, N, V or 1].
    """

    query: Any
    key: Any
    value: Any
    log_decay: Any
    erase: Any
    write: Any


class GateArrays(NamedTuple):
    """The content gate's arrays, as `Content` but over the whole sequence."""

    down: Any
    up: Any
    content: Any
    partial_sum: Any
    mean: Any


def make_plan(
    tiles: Tiles,
    scale: float,
    inputs: Inputs,
    gate: Gate | None,
    decay_floor: float | None,
    interpret: bool,
) -> tuple[Plan, int]:
    """The plan of a call, and the length its inputs are to be padded to."""
    batch, length, heads, _ = inputs.value.shape
    unit = SPAN if gate is None else max(SPAN, gate.tiles * tiles.chunk)
    anchor = decay.anchor(decay_floor, tiles.chunk)
    plan = Plan(tiles, scale, 1, gate, anchor, interpret=interpret)
    channels = padded(inputs.query.shape[3])
    columns = K_LEVELS + (plan.key_tiles if plan.solves else 0)
    row = batch * heads * columns * channels * plan.product.dtype.itemsize
    most = SOLVED_PART_BYTES if plan.solves else PART_BYTES
    if gate is None and not plan.solves:  # under "walk" it is to be CARVE's to the bit
        width = padded(inputs.value.shape[3])
        plan = for_few_heads(plan, batch * heads, width, length, most // row)
    unit *= plan.stretches
    units = -(-length // unit)
    if gate is not None and unit >= LONG_CHUNK and units <= MOST_PARTS and tiles.solve != "walk":
        return plan._replace(parts=units, by_chunk=True), units * unit
    parts = -(-length * row // most)
    parts = max(1, min(parts, MOST_PARTS, units))
    # A few more parts are cheaper than the copy of every input that padding takes.
    even = [p for p in range(parts, min(2 * parts, units) + 1) if units % p == 0]
    parts = even[0] if even else parts
    return plan._replace(parts=parts), -(-units // parts) * parts * unit


def _part(x: Array, plan: Plan, part: int) -> Array:
    """A part's rows of a [B, rows, …]."""
    rows = x.shape[1] // plan.parts
    return x[:, part * rows : (part + 1) * rows]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run(
    plan: Plan, inputs: Inputs, memory: Array, gate: GateArrays | None
) -> tuple[Array, Array, Array | None]:
    """Output [B, T, N, V], last state and sums of outputs of the gate chunks [B, chunks, N, V].

    Lengths are whole parts, channels powers of two; states are transposed, [B, N, V, K] float32.
    """
    return _forward(plan, inputs, memory, gate)[0]


def _forward(plan: Plan, inputs: Inputs, memory: Array, gate: GateArrays | None) -> tuple:
    output, memories, sums, squares = None, [], [], []
    known = not plan.solves  # b, and so the inverse, before the scan
    scan_forward = scan_stretches if plan.stretches > 1 else plan.forward_scan or scan
    seen: Any = None if gate is None else gate.content
    for part in range(plan.parts):
        ready, memory = _in_order((inputs, memory), part > 0)
        x, here = Operands(*ready), None
        if gate is not None and plan.by_chunk:
            shift = _erase_shift(plan.gate, seen[:, None], gate.down, gate.up)
            x = x._replace(erase=_erase(plan, ready, shift, part))
        elif gate is not None:
            before = gate.partial_sum if part == 0 else jnp.zeros_like(gate.partial_sum)
            mean = _part(gate.mean, plan, part)
            here = Content(gate.down, gate.up, seen, before, mean)
        scores = score(plan, x if known else x._replace(erase=None), part, with_keys=not known)
        squares.append(scores.squares)
        found = scan_forward(
            plan,
            ScanOperands(x.value, None if known else x.erase, x.write),
            scores,
            memory,
            part,
            content=here,
            output=output,
            sums=plan.by_chunk,
        )
        memories.append(memory if found.starts is None else found.starts)
        output, memory = found.output, found.memory
        if gate is not None:
            added = gate.partial_sum[:, None] if plan.by_chunk and part == 0 else 0.0
            sums.append(found.sums + added)
            seen = _part(gate.mean, plan, part)[:, -1, None, None] * sums[-1][:, -1]
    all_sums = jnp.concatenate(sums, axis=1) if sums else None
    # Named each by itself: one that is not read again is not kept.
    output, memories, squares, all_sums = kept((output, memories, squares, all_sums))
    return (output, memory, all_sums), (inputs, gate, memories, squares, all_sums)


def _in_order(tree: Any, wait: bool) -> Any:
    """The same arrays; if asked, none is read before all are there. What is parallel over tiles
    needs the inputs alone: XLA would else do it for many parts at once, and hold it all."""
    return jax.lax.optimization_barrier(tree) if wait else tree


class Seen(NamedTuple):
    """What the content gate saw, known once the forward pass is over.

    Attributes:
      contents: m of every gate chunk [B, chunks, N, V].
      shift: of the logits [B, chunks, N, K].
      mean: [B, chunks], what made a chunk's content of the sum of the chunk before.
    """

    contents: Array
    shift: Array
    mean: Array


def _seen(gate: Gate, arrays: GateArrays, sums: Array) -> Seen:
    later = arrays.mean[:, :-1, None, None] * sums[:, :-1]
    contents = jnp.concatenate([arrays.content[:, None], later], axis=1)
    mean = jnp.concatenate([jnp.zeros_like(arrays.mean[:, :1]), arrays.mean[:, :-1]], axis=1)
    return Seen(contents, _erase_shift(gate, contents, arrays.down, arrays.up), mean)


def _erase_shift(gate: Gate, contents: Array, down: Array, up: Array) -> Array:
    """Shifts of the logits [B, chunks, N, K] of the contents of many gate chunks."""
    found = content.erase_shift(
        contents.swapaxes(1, 2),
        down,
        up,
        stop_gradient=gate.stop_gradient,
        norm_eps=gate.norm_eps,
        channels=gate.channels,
    )
    return found.swapaxes(1, 2)


def _erase(plan: Plan, inputs: Inputs, shift: Array, part: int) -> Array:
    """b [B, rows, N, K] of a part, from the shifts of its gate chunks."""
    sigma = _sigma(plan, plan.gate, _part(inputs.erase, plan, part), shift)
    return (plan.gate.scale * sigma).astype(inputs.erase.dtype)


def _slope(plan: Plan, inputs: Inputs, shift: Array, part: int) -> Array:
    """The derivative of `_erase` in the logits."""
    sigma = _sigma(plan, plan.gate, _part(inputs.erase, plan, part), shift)
    return (plan.gate.scale * sigma * (1.0 - sigma)).astype(inputs.erase.dtype)


def _sigma(plan: Plan, gate: Gate, logits: Array, shift: Array) -> Array:
    """σ of the erase logits [B, T, H, K] under the shifts of their gate chunks, [B, T, N, K]."""
    logits = jnp.repeat(logits.astype(jnp.float32), shift.shape[2] // logits.shape[2], axis=2)
    shift = jnp.repeat(shift, gate.tiles * plan.tiles.chunk, axis=1)
    return jax.nn.sigmoid(logits + shift)


def _backward(plan: Plan, residuals: tuple, cotangents: tuple) -> tuple:
    inputs, arrays, memories, squares, sums = residuals
    d_output, d_memory, d_sums = cotangents
    seen = None if plan.gate is None else _seen(plan.gate, arrays, sums)
    found: Found | None = None
    parts: list[BackwardScanOutputs] = []
    d_content = None
    for part in reversed(range(plan.parts)):
        ready, d_memory, found = _in_order((inputs, d_memory, found), part < plan.parts - 1)
        back, found = _backward_part(
            plan,
            ready,
            arrays,
            seen,
            memories[part],
            squares[part],
            (d_output, d_memory, d_sums),
            part,
            found,
        )
        d_memory = back.d_memory
        parts.insert(0, back)
        if seen is not None:
            contents = _part(seen.contents, plan, part)[:, :1]
            _, pull = jax.vjp(
                lambda c: _erase_shift(plan.gate, c, arrays.down, arrays.up), contents
            )
            d_content = pull(back.d_shift[:, :1])[0][:, 0]
            if part > 0:
                first = part * (seen.mean.shape[1] // plan.parts)
                passed = seen.mean[:, first, None, None] * d_content
                d_sums = d_sums.at[:, first - 1].add(passed)
    d_arrays = None
    if seen is not None:
        _, pull = jax.vjp(
            lambda *p: _erase_shift(plan.gate, seen.contents, *p), arrays.down, arrays.up
        )
        d_down, d_up = pull(jnp.concatenate([back.d_shift for back in parts], axis=1))
        d_mean = jnp.zeros_like(arrays.mean)  # made of sizes and of where segments start
        d_arrays = GateArrays(d_down, d_up, d_content, parts[0].d_sums[:, 0], d_mean)
    return _collect(inputs, found), d_memory, d_arrays


class Found(NamedTuple):
    """Gradients of the whole sequence, of the parts that have been scanned backward.

    Attributes:
      pairs: those of v and w.
      spans: those of q, k, g and b.
    """

    pairs: Pairs
    spans: SpanGradients


def _backward_part(
    plan: Plan,
    inputs: Inputs,
    arrays: Any,
    seen: Seen | None,
    memory: Any,
    squares: Any,
    cotangents: tuple,
    part: int,
    found: Any,
) -> tuple[BackwardScanOutputs, Any]:
    """One part: its scores and scan again, the backward scan, and its rows of the gradients."""
    d_output, d_memory, d_sums = cotangents
    x = Operands(*inputs)
    own = slope = None
    if seen is not None:
        own = Seen(*(_part(a, plan, part) for a in seen))
        x = x._replace(erase=_erase(plan, inputs, own.shift, part))
        slope = _slope(plan, inputs, own.shift, part)
    gated = own is not None and not plan.by_chunk
    scores = _score_again(plan, x, squares, part, with_keys=gated)
    ready = ScanOperands(x.value, x.erase if gated else None, x.write)
    if plan.stretches > 1:
        again = scan_stretches_again(plan, ready, scores, memory, part)
    else:
        again = scan(plan, ready, scores, memory, part, replay=True)
    gate = None
    if plan.by_chunk:
        wide = _part(d_output, plan, part).astype(jnp.float32) + d_sums[:, part : part + 1]
        d_output = wide.astype(plan.product.dtype)
    elif own is not None:
        gate = GateInputs(
            erase=x.erase,
            slope=slope,
            contents=own.contents,
            residual=again.residual,
            states=again.states,
            d_sums=_part(d_sums, plan, part),
            mean=own.mean,
            down=arrays.down,
            up=arrays.up,
        )
    if plan.stretches > 1:
        back = scan_stretches_backward(plan, scores, d_output, d_memory, part, memory.carried)
    else:
        scan_back = plan.backward_scan or scan_backward
        back = scan_back(plan, scores, d_output, d_memory, part, gate)
    d_output = back.d_output if gated else d_output
    made = _gradients(plan, x, slope, d_output, again, back, part, found)
    if plan.by_chunk:
        assert own is not None
        d_shift = jnp.sum(_part(made.spans.erase, plan, part), axis=1, keepdims=True)
        back = back._replace(d_shift=d_shift, d_sums=d_sums[:, part : part + 1])
    return back, made


def _score_again(plan: Plan, x: Operands, squares: Any, part: int, with_keys: bool) -> Scores:
    """The scores of a part, of which `squares` were kept: P and A, or P alone."""
    if holds_inverse(squares):
        scores = score(plan, x, part, with_keys=with_keys, with_squares=False)
        return scores._replace(squares=squares)
    return score(plan, x, part, with_keys=with_keys, pairs=squares)


def _gradients(
    plan: Plan,
    x: Operands,
    slope: Array | None,
    d_output: Array,
    again: ScanOutputs,
    back: BackwardScanOutputs,
    part: int,
    found: Any,
) -> Found:
    """Gradients of a part's inputs, written into those of the parts after it (`found`, if any)."""
    decays = x.log_decay if per_head(x.log_decay) else None
    pair_inputs = PairInputs(x.value, x.write, d_output, again.residual, back.d_written, decays)
    paired = pairs(plan, pair_inputs, part, None if found is None else found.pairs)
    spans = SpanInputs(
        query=x.query,
        key=x.key,
        log_decay=x.log_decay,
        erase=x.erase,
        pairs=paired.squares,
        diagonal=paired.diagonal,
        d_output=d_output,
        residual=again.residual,
        d_written=back.d_written,
        states=again.states,
        d_states=back.d_states,
        slope=slope,
    )
    before = None if found is None else found.spans
    made = gradients(plan, spans, part, _like(plan, x), before)
    return Found(paired._replace(squares=None, diagonal=None), made)


def _like(plan: Plan, inputs: Operands) -> SpanGradients:
    """Shapes and dtypes of what the gradients' kernel writes, each for all value heads."""
    batch, length, heads, _ = inputs.value.shape
    channels = inputs.query.shape[3]
    grouped = heads != inputs.query.shape[2]

    def like(a: Array, exact: bool = False) -> jax.ShapeDtypeStruct:
        scalar = a.shape[3] != channels
        width = channels // min(channels, plan.tiles.block_key) if scalar else channels
        dtype = jnp.float32 if exact or grouped or scalar else a.dtype
        return jax.ShapeDtypeStruct((batch, length, heads, width), dtype)

    return SpanGradients(
        like(inputs.query),
        like(inputs.key),
        like(inputs.log_decay, exact=True),
        like(inputs.erase, exact=plan.by_chunk),
    )


def _collect(inputs: Inputs, found: Any) -> Inputs:
    """Gradients in the shapes and dtypes of the inputs."""

    def onto(d: Array, like: Array) -> Array:
        batch, length, heads, channels = like.shape
        if d.shape[3] != channels:
            d = d.sum(axis=-1, keepdims=True)
        if d.shape[2] != heads:
            d = d.reshape(batch, length, heads, -1, channels).sum(axis=3)
        return d.astype(like.dtype)

    return Inputs(
        query=onto(found.spans.query, inputs.query),
        key=onto(found.spans.key, inputs.key),
        value=found.pairs.value,
        log_decay=onto(found.spans.log_decay, inputs.log_decay),
        erase=onto(found.spans.erase, inputs.erase),
        write=found.pairs.write,
    )


run.defvjp(_forward, _backward)
