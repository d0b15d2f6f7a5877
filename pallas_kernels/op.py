"""The rule as one differentiable operation: kernels in order, part after part of the sequence.

Forward leaves behind the inputs, the state before each part and the sums of outputs of the gate
chunks; everything else is found again in the backward pass. The trade: what a tile needs for its
gradients (scores, inverse, R, states) is 5 to 8 times its inputs; finding it again costs the
kernels that are parallel over tiles and, since the inverses then need no walk, a walk of the plain
rule, about a fifth of CARVE's instructions a tile. Parts keep the rest small: a tile's needs never
exist for more than `PART_BYTES` at once.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.backward import GateInputs, walk_back
from pallas_kernels.forward import CONTENT_NORM_EPS, walk
from pallas_kernels.gradients import SpanGradients, SpanInputs, gradients
from pallas_kernels.plan import Content, Gate, Operands, Plan
from pallas_kernels.score import KEYS, cumulate, score
from pallas_kernels.tiling import SPAN, Tiles, padded
from pallas_kernels.wy import LOWEST_ANCHORED, Array

PART_BYTES = 1 << 28
MOST_PARTS = 32


class Inputs(NamedTuple):
    """The rule's inputs, padded; `erase` holds logits under a content gate.

    Attributes:
      query, key: [B, T, H, K].
      value: [B, T, N, V].
      log_decay, erase: [B, T, H, K or 1].
      write: [B, T, N, V or 1].
    """

    query: Array
    key: Array
    value: Array
    log_decay: Array
    erase: Array
    write: Array


class GateArrays(NamedTuple):
    """The content gate's arrays, as `Content` but over the whole sequence."""

    down: Array
    up: Array
    content: Array
    partial_sum: Array
    mean: Array


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
    units = -(-length // unit)
    anchored = decay_floor is not None and decay_floor >= LOWEST_ANCHORED
    plan = Plan(tiles, scale, 1, gate, anchored, interpret)
    channels = padded(inputs.query.shape[3])
    row = (KEYS + len(plan.levels)) * channels * plan.product.dtype.itemsize
    parts = -(-batch * length * heads * row // PART_BYTES)
    parts = max(1, min(parts, MOST_PARTS, units))
    return plan._replace(parts=parts), -(-units // parts) * parts * unit


def _operands(inputs: Inputs, decay: Array) -> Operands:
    return Operands(
        inputs.query, inputs.key, inputs.value, decay, inputs.erase, inputs.write
    )


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
    output, content, memories, sums = None, None, [], []
    known = not plan.solves
    if gate is not None:
        content = gate.content
    for part in range(plan.parts):
        x = _operands(inputs, cumulate(plan, inputs.log_decay, part))
        scores = score(plan, x if known else x._replace(erase=None), part, with_keys=not known)
        here = None
        if gate is not None:
            partial_sum = gate.partial_sum if part == 0 else jnp.zeros_like(gate.partial_sum)
            mean = _part(gate.mean, plan, part)
            here = Content(gate.down, gate.up, content, partial_sum, mean)
        memories.append(memory)
        x = x._replace(erase=None) if known else x
        found = walk(plan, x, scores, memory, part, content=here, output=output)
        output, memory = found.output, found.memory
        if gate is not None:
            sums.append(found.sums)
            content = mean[:, -1, None, None] * found.sums[:, -1]
    sums = jnp.concatenate(sums, axis=1) if gate is not None else None
    return (output, memory, sums), (inputs, gate, memories, sums)


def _erase_shift(plan: Plan, contents: Array, down: Array, up: Array) -> Array:
    """Shifts of the logits [B, chunks, N, K] of the contents of all gate chunks."""
    assert plan.gate is not None
    if plan.gate.norm:
        square = jnp.sum(contents * contents, axis=-1, keepdims=True) / plan.gate.channels
        contents = contents * jax.lax.rsqrt(square + CONTENT_NORM_EPS)
    low_rank = jnp.einsum("bcnv,nvr->bcnr", contents, down, precision="highest")
    return jnp.einsum("bcnr,nrk->bcnk", low_rank, up, precision="highest")


def _first_content_gradient(
    plan: Plan, contents: Array, gate: GateArrays, d_shift: Array
) -> Array:
    """Gradient of the content of a part's first gate chunk [B, N, V], from that of its shift."""
    assert plan.gate is not None
    if plan.gate.stop_gradient:
        return jnp.zeros_like(contents[:, 0])
    _, pull = jax.vjp(lambda c: _erase_shift(plan, c, gate.down, gate.up), contents[:, :1])
    return pull(d_shift[:, :1])[0][:, 0]


def _logits(plan: Plan, inputs: Inputs, shift: Array, part: int) -> Array:
    """Erase logits of a part under its contents [B, T, N, K], float32."""
    assert plan.gate is not None
    logits = _part(inputs.erase, plan, part).astype(jnp.float32)
    logits = jnp.repeat(logits, shift.shape[2] // logits.shape[2], axis=2)
    chunk = plan.gate.tiles * plan.tiles.chunk
    return logits + jnp.repeat(shift, chunk, axis=1)[:, : logits.shape[1]]


def _backward(plan: Plan, residuals: tuple, cotangents: tuple) -> tuple:
    inputs, gate, memories, sums = residuals
    d_output, d_memory, d_sums = cotangents
    d_inputs = _like(plan, inputs)
    found: Any = None
    d_written, d_erase_logits, d_shift, d_sum_total = [], [], [], []
    if gate is not None:
        chunks = gate.mean.shape[1]
        contents = jnp.concatenate(
            [gate.content[:, None], gate.mean[:, :-1, None, None] * sums[:, :-1]], axis=1
        )
        shift, pull = jax.vjp(
            lambda down, up: _erase_shift(plan, contents, down, up), gate.down, gate.up
        )
        before = jnp.concatenate([jnp.zeros_like(gate.mean[:, :1]), gate.mean[:, :-1]], axis=1)
    for part in reversed(range(plan.parts)):
        x = _operands(inputs, cumulate(plan, inputs.log_decay, part))
        if gate is not None:
            own = [_part(a, plan, part) for a in (shift, contents, before, d_sums)]
            sigma = jax.nn.sigmoid(_logits(plan, inputs, own[0], part))
            x = x._replace(erase=(plan.gate.scale * sigma).astype(inputs.erase.dtype))
        scores = score(plan, x, part, with_keys=gate is not None)
        ready = x if gate is not None else x._replace(erase=None)
        again = walk(plan, ready, scores, memories[part], part, replay=True)
        gate_inputs = None
        if gate is not None:
            gate_inputs = GateInputs(
                logits=inputs.erase,
                shift=own[0],
                contents=own[1],
                residual=again.residual,
                states=again.states,
                d_sums=own[3],
                mean=own[2],
                down=gate.down,
                up=gate.up,
            )
        back = walk_back(plan, scores, d_output, d_memory, part, gate_inputs)
        spans = SpanInputs(
            query=inputs.query,
            key=inputs.key,
            decay=x.decay,
            erase=x.erase,
            d_output=d_output,
            d_sums=back.d_sums,
            residual=again.residual,
            d_written=back.d_written,
            states=again.states,
            d_states=back.d_states,
        )
        found = gradients(plan, spans, part, d_inputs, found)
        d_memory = back.d_memory
        d_written.insert(0, back.d_written)
        if gate is not None:
            slope = plan.gate.scale * sigma * (1.0 - sigma)
            d_erase_logits.insert(0, _part(found.erase, plan, part) * slope)
            d_shift.insert(0, back.d_shift)
            d_sum_total.insert(0, back.d_sums)
            d_content = _first_content_gradient(plan, own[1], gate, back.d_shift)
            if part > 0:
                first = part * (chunks // plan.parts)
                d_sums = d_sums.at[:, first - 1].add(before[:, first, None, None] * d_content)
    return _collect(plan, inputs, found, d_written, d_erase_logits), d_memory, (
        None
        if gate is None
        else GateArrays(
            *pull(jnp.concatenate(d_shift, axis=1)),
            content=d_content,
            partial_sum=d_sum_total[0][:, 0],
            mean=jnp.zeros_like(gate.mean),
        )
    )


def _like(plan: Plan, inputs: Inputs) -> SpanGradients:
    """Shapes and dtypes of what the gradients' kernel writes, a value head each."""
    batch, length, heads, _ = inputs.value.shape
    channels = inputs.query.shape[3]
    grouped = heads != inputs.query.shape[2]

    def like(a: Array, exact: bool = False) -> jax.ShapeDtypeStruct:
        blocks = -(-channels // plan.tiles.block_key)
        width = a.shape[3] if a.shape[3] == channels else blocks
        dtype = jnp.float32 if exact or grouped or a.shape[3] != channels else a.dtype
        return jax.ShapeDtypeStruct((batch, length, heads, width), dtype)

    return SpanGradients(
        like(inputs.query),
        like(inputs.key),
        like(inputs.log_decay, exact=True),
        like(inputs.erase, exact=plan.gate is not None),
    )


def _collect(
    plan: Plan, inputs: Inputs, found: SpanGradients, d_written: list, d_erase_logits: list
) -> Inputs:
    """Gradients in the shapes and dtypes of the inputs."""
    d_z = jnp.concatenate(d_written, axis=1).astype(jnp.float32)
    d_write = inputs.value * d_z
    if inputs.write.shape[3] == 1:
        d_write = d_write.sum(axis=-1, keepdims=True)
    d_erase = jnp.concatenate(d_erase_logits, axis=1) if d_erase_logits else found.erase

    def onto(d: Array, like: Array) -> Array:
        batch, length, heads, channels = like.shape
        if d.shape[3] != channels:
            d = d.sum(axis=-1, keepdims=True)
        if d.shape[2] != heads:
            d = d.reshape(batch, length, heads, -1, channels).sum(axis=3)
        return d.astype(like.dtype)

    return Inputs(
        onto(found.query, inputs.query),
        onto(found.key, inputs.key),
        (inputs.write * d_z).astype(inputs.value.dtype),
        onto(found.log_decay, inputs.log_decay),
        onto(d_erase, inputs.erase),
        d_write.astype(inputs.write.dtype),
    )


run.defvjp(_forward, _backward)
