"""The rule in WY form, tile by tile, in plain XLA, with its own backward pass.

One tile of C tokens, in the notation of GDN-2 (arXiv 2605.22791) with start state S_0:

    R = A (Z − Ē S_0)      O = (γ⊙q) S_0 + P R      S_C = Diag(γ_C) S_0 + (k⊙γ_C⊘γ)ᵀ R

A is the inverse of I + T; T and P are the decayed scores of (b⊙k, k) and (q, k). One inverse serves
all value channels, because the erase gate acts on the key axis alone. What does not depend on the
state is computed for all tiles at once here; `walk` does the rest in order.

Residuals are the inputs, the state at the start of each tile and the content of each gate chunk.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.ops.content_gate import CarveState, ContentGate, erase_gate, erase_shift
from carve_jax.ops.gated_delta import tiles, walk
from carve_jax.ops.gated_delta.reference import RuleInputs, segment_starts
from carve_jax.ops.gated_delta.tiles import matmul
from carve_jax.ops.gated_delta.tiling import cut, tile_size, uncut
from carve_jax.shapes import Array, Float, Float32, Int

CARVE_TILE = 64
RESTART = -1e5  # exp gives exactly 0 in float32: a new segment is a decay that keeps nothing


class Plan(NamedTuple):
    """What is static about a call; `gate` holds the settings of the content gate, not its arrays.

    Attributes:
      tile: C, tokens.
      scale: factor of the query.
      gate: settings of the content gate, or None for the plain rule.
      chunks: J, the most gate chunks that meet in a tile.
    """

    tile: int
    scale: float
    gate: tuple | None = None
    chunks: int = 1


class Variables(NamedTuple):
    """What gradients flow to; the last two are empty without a content gate."""

    inputs: RuleInputs
    memory: Array
    content: tuple[Array, ...] = ()  # content, partial_sum
    projections: tuple[Array, ...] = ()  # P_down, P_up


def chunked_rule(
    inputs: RuleInputs,
    memory: Float32[Array, "B N K V"],
    segment_ids: Int[Array, "B T"] | None,
    scale: float,
    chunk_size: int,
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """GDN-2 in tiles of at most `chunk_size` tokens."""
    batch, length = inputs.value.shape[:2]
    plan = Plan(tile_size(chunk_size, length), scale)
    starts = segment_starts(segment_ids, batch, length)
    output, memory, _ = _run(plan, Variables(inputs, memory), starts, None)
    return output, memory


def chunked_carve(
    inputs: RuleInputs,
    state: CarveState,
    segment_ids: Int[Array, "B T"] | None,
    scale: float,
    gate: ContentGate,
    aligned: bool,
) -> tuple[Float[Array, "B T N V"], CarveState]:
    """CARVE; `aligned` promises that the call starts a gate chunk, which saves solves."""
    batch, length = inputs.value.shape[:2]
    tile = tile_size(CARVE_TILE, length)
    chunks = walk.most_chunks(tile, gate.chunk, aligned)
    plan = Plan(tile, scale, gate[2:], chunks)
    starts = segment_starts(segment_ids, batch, length)
    variables = Variables(
        inputs, state.memory, (state.content, state.partial_sum), (gate.down, gate.up)
    )
    output, memory, (content, partial_sum) = _run(plan, variables, starts, state.position)
    position = (state.position + length) % gate.chunk
    return output, CarveState(memory, content, partial_sum, position)


class Tiles(NamedTuple):
    """The inputs as float32 tiles [tiles, B, N, C, channels]; the query scaled, restarts written
    as decays, `erase` holding logits under a content gate."""

    query: Array
    key: Array
    value: Array
    log_decay: Array
    erase: Array
    write: Array


def _cut_inputs(plan: Plan, inputs: RuleInputs, starts: Array) -> Tiles:
    heads, channels = inputs.value.shape[2], inputs.query.shape[3]
    log_decay = jnp.where(starts[..., None, None], RESTART, inputs.log_decay.astype(jnp.float32))
    t = Tiles(*(cut(x, plan.tile, heads) for x in inputs._replace(log_decay=log_decay)))
    log_decay = jnp.broadcast_to(t.log_decay, (*t.log_decay.shape[:-1], channels))
    return t._replace(query=plan.scale * t.query, log_decay=log_decay)


def _shared(t: Tiles) -> walk.Shared:
    """Everything that depends on neither state nor erase gate."""
    decay = tiles.decay_factors(t.log_decay)
    key_columns = tiles.lower_halves(t.key, decay)
    query_rows = tiles.upper_halves(t.query, decay)
    return walk.Shared(
        decay=decay,
        key_rows=tiles.upper_halves(t.key, decay),
        key_columns=key_columns,
        query_rows=query_rows,
        scores=tiles.scores(query_rows, key_columns, (t.query * t.key).sum(-1)),
        query_start=decay.start * t.query,
        key_start=decay.start * t.key,
        key_tail=decay.tail * t.key,
        written=t.write * t.value,
    )


def _content(
    plan: Plan, variables: Variables, starts: Array, position: Array | None
) -> tuple[ContentGate, walk.ChunkMarks]:
    """The content gate, and the places of the gate chunks."""
    assert plan.gate is not None
    assert position is not None
    down, up = variables.projections
    gate = ContentGate(down, up, *plan.gate)
    return gate, walk.mark_chunks(starts, position, gate.chunk, plan.tile, plan.chunks)


def _forward(plan: Plan, variables: Variables, starts: Array, position: Array | None):
    t = _cut_inputs(plan, variables.inputs, starts)
    s = _shared(t)
    if plan.gate is None:
        inverse, erased = walk.open_system(t.erase, s)
        memory, (memories, residual) = walk.forward(variables.memory, inverse, erased, s)
        content, contents = (), None
    else:
        gate, marks = _content(plan, variables, starts, position)
        carry = (variables.memory, *variables.content)
        carry, (memories, residual, contents) = walk.forward_carve(carry, t.erase, s, gate, marks)
        memory, content = carry[0], carry[1:]
    output = matmul("...ck,...kv->...cv", s.query_start, memories)
    output = output + matmul("...rs,...sv->...rv", s.scores, residual)
    output = uncut(output, variables.inputs.value)
    return (output, memory, content), (variables, starts, position, memories, contents)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(plan: Plan, variables: Variables, starts: Array, position: Array | None):
    """Outputs, final memory, and final (content, partial_sum), empty without a content gate."""
    return _forward(plan, variables, starts, position)[0]


def _backward(plan: Plan, residuals: tuple, cotangents: tuple):
    variables, starts, position, memories, contents = residuals
    inputs = variables.inputs
    d_output, d_memory, d_content = cotangents
    t = _cut_inputs(plan, inputs, starts)
    s = _shared(t)
    d_output = cut(d_output, plan.tile, inputs.value.shape[2])
    if plan.gate is None:
        erase = t.erase
        inverse, erased = walk.open_system(erase, s)
        residual = walk.residuals(inverse, erased, s.written, memories)
        d_memory, (d_memories, d_written) = walk.backward(d_memory, d_output, inverse, erased, s)
        d_content, d_projections = (), ()
    else:
        gate, marks = _content(plan, variables, starts, position)
        shift = walk.shift_rows(contents, gate, marks)
        erase = erase_gate(t.erase, shift, gate)
        inverse, erased = walk.open_system(erase, s)
        residual = walk.residuals(inverse, erased, s.written, memories)
        slope = walk.gate_slope(t.erase + shift, gate)
        carry, (d_memories, d_written, d_sums, d_shift) = walk.backward_carve(
            (d_memory, *d_content),
            d_output,
            (t.key, inverse, erased, residual, memories, contents, slope),
            s,
            gate,
            marks,
        )
        d_memory, d_content = carry[0], carry[1:]
        d_output = d_output + matmul("...bcj,...bnjv->...bncv", marks.members, d_sums)
        _, pull = jax.vjp(
            lambda down, up: erase_shift(contents, gate._replace(down=down, up=up)),
            *variables.projections,
        )
        d_projections = pull(d_shift)

    d = _input_gradients(t, s, erase, residual, memories, d_output, d_memories, d_written)
    if plan.gate is not None:
        d = d._replace(erase=d.erase * slope)
    d = d._replace(query=plan.scale * d.query)
    d_inputs = RuleInputs(*(uncut(x, like) for x, like in zip(d, inputs, strict=True)))
    keep = ~starts[..., None, None]
    d_inputs = d_inputs._replace(log_decay=jnp.where(keep, d_inputs.log_decay, 0))
    return Variables(d_inputs, d_memory, d_content, d_projections), None, None


def _input_gradients(
    t: Tiles,
    s: walk.Shared,
    erase: Array,
    residual: Array,
    memories: Array,
    d_output: Array,
    d_memories: Array,
    d_written: Array,
) -> Tiles:
    """Gradients of the tiles, all at once, from those of the outputs, of the states at the ends of
    the tiles, and of W = Z − Ē S_0 (which is that of Z)."""
    d_scores = matmul("...rv,...sv->...rs", d_output, residual)
    query_blocks = tiles.score_blocks(d_scores)
    d_diagonal = jnp.diagonal(d_scores, axis1=-2, axis2=-1)[..., None]
    system_blocks = tiles.score_blocks(-matmul("...rv,...sv->...rs", d_written, residual))
    erase_rows = walk.erase_rows(erase, s.key_rows)

    d_query = tiles.sum_upper(tiles.rows_gradient(query_blocks, s.key_columns), s.decay.upper)
    d_query += s.decay.start * matmul("...cv,...kv->...ck", d_output, memories)
    d_rows = walk.edit_rows_gradient(system_blocks, d_written, memories, s)  # of b⊙k
    query_columns = tiles.columns_gradient(query_blocks, s.query_rows)
    system_columns = tiles.columns_gradient(system_blocks, erase_rows)
    d_columns = [a + b for a, b in zip(query_columns, system_columns, strict=True)]
    d_tail = matmul("...cv,...kv->...ck", residual, d_memories)
    d_key = tiles.sum_lower(d_columns, s.decay.lower) + s.decay.tail * d_tail

    # g_i decays every pair of a row at or after i and a column before it, S_0 and the end state.
    through_rows = erase * t.key * d_rows + t.query * d_query - t.key * d_key
    through_end = s.decay.total * (d_memories * memories).sum(-1) + (s.key_tail * d_tail).sum(-2)
    d_log_decay = tiles.reverse_sum(through_rows) + through_end[..., None, :]
    return Tiles(
        query=d_query + d_diagonal * t.key,
        key=d_key + d_diagonal * t.query + erase * d_rows,
        value=t.write * d_written,
        log_decay=d_log_decay,
        erase=d_rows * t.key,
        write=t.value * d_written,
    )


_run.defvjp(_forward, _backward)
