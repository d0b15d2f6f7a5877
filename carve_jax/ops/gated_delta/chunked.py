"""The rule in WY form, tile by tile, in plain XLA, with its own backward pass.

One tile of C tokens, in the notation of GDN-2 (arXiv 2605.22791), with start state S_0,
G_r = Σ_{i≤r} g_i, γ = exp G and q already scaled:

    Ē = γ⊙b⊙k     K̄ = k⊘γ     Z = w⊙v     T = tril(Ē K̄ᵀ, −1)     A = (I + T)⁻¹
    R = A (Z − Ē S_0)          P = tril((γ⊙q) K̄ᵀ)
    O = (γ⊙q) S_0 + P R        S_C = Diag(γ_C) S_0 + (k⊙γ_C⊘γ)ᵀ R

Neither γ nor 1/γ enters a product so: T and P are decayed scores of (b⊙k, k) and (q, k), found from
differences of G alone (`tiles`). One inverse serves all value channels, because the erase gate acts
on the key axis alone. Each pass goes in stages, marked below:

    1. what depends on neither state nor erase gate, for a group of tiles at once;
    2. the inter-chunk scan (`scan`): what carries the state from tile to tile, in order;
    3. what follows from the states, for the group at once again.

Groups follow one another, so that what a tile needs besides its inputs never exists for the whole
sequence. The backward pass keeps the inputs, the state at the start of each tile and the content of
each gate chunk, and finds the rest again.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.ops.content_gate import CarveState, ContentGate, erase_gate, erase_shift
from carve_jax.ops.gated_delta import scan, tiles
from carve_jax.ops.gated_delta.isolation import isolated
from carve_jax.ops.gated_delta.reference import RESTART, RuleInputs, segment_starts
from carve_jax.ops.gated_delta.scan import Events
from carve_jax.ops.gated_delta.tiles import matmul
from carve_jax.ops.gated_delta.tiling import (
    cut,
    from_groups,
    group_size,
    pad_time,
    take_group,
    tile_size,
    uncut,
)
from carve_jax.shapes import Array, Bool, Float, Float32, Int
from pallas_kernels.call import kept

CARVE_TILE = 64


class Plan(NamedTuple):
    """What is static about a call; `gate` holds the settings of the content gate, not its arrays.

    Attributes:
      tile: C, tokens.
      group: tiles of which what depends on no state is computed at once.
      scale: factor of the query.
      gate: settings of the content gate, or None for the plain rule.
      chunks: the most gate chunks that meet in a tile.
    """

    tile: int
    group: int
    scale: float
    gate: tuple | None = None
    chunks: int = 1


class Carry(NamedTuple):
    """What the scan carries; `content` is (content, partial_sum) of `CarveState` under a content
    gate."""

    memory: Float32[Array, "B N K V"]
    content: tuple[Float32[Array, "B N *lag V"], ...] = ()


Projections = tuple[Array, ...]
"""P_down and P_up; empty without a content gate."""


def chunked_rule(
    inputs: RuleInputs,
    memory: Float32[Array, "B N K V"],
    segment_ids: Int[Array, "B T"] | None,
    scale: float,
    chunk_size: int,
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """GDN-2 in tiles of at most `chunk_size` tokens."""

    def run(inputs: RuleInputs, memory: Array) -> tuple[Array, Array]:
        return _rule(inputs, memory, segment_ids, scale, chunk_size)

    return isolated(run, inputs, memory, segment_ids)


def _rule(
    inputs: RuleInputs, memory: Array, segment_ids: Array | None, scale: float, chunk_size: int
) -> tuple[Array, Array]:
    batch, length = inputs.value.shape[:2]
    tile = tile_size(chunk_size, length)
    plan = Plan(tile, group_size(inputs.query, inputs.value, tile), scale)
    events = Events(segment_starts(segment_ids, batch, length), jnp.zeros((batch, length), bool))
    output, carry = _run(plan, inputs, Carry(memory), (), events)
    return output, carry.memory


def chunked_carve(
    inputs: RuleInputs,
    state: CarveState,
    segment_ids: Int[Array, "B T"] | None,
    scale: float,
    gate: ContentGate,
    aligned: bool,
) -> tuple[Float[Array, "B T N V"], CarveState]:
    """CARVE; `aligned` promises that the call starts a gate chunk, which saves solves."""

    def run(inputs: RuleInputs, state: CarveState) -> tuple[Array, CarveState]:
        return _carve(inputs, state, segment_ids, scale, gate, aligned)

    return isolated(run, inputs, state, segment_ids, logits=True)


def _carve(
    inputs: RuleInputs,
    state: CarveState,
    segment_ids: Array | None,
    scale: float,
    gate: ContentGate,
    aligned: bool,
) -> tuple[Array, CarveState]:
    batch, length = inputs.value.shape[:2]
    tile = tile_size(CARVE_TILE, length)
    chunks = scan.most_chunks(tile, gate.chunk, aligned)
    plan = Plan(tile, group_size(inputs.query, inputs.value, tile), scale, gate[2:], chunks)
    phase = (state.position[:, None] + jnp.arange(length)[None]) % gate.chunk
    events = Events(segment_starts(segment_ids, batch, length), phase == gate.chunk - 1)
    carry = Carry(state.memory, (state.content, state.partial_sum))
    output, carry = _run(plan, inputs, carry, (gate.down, gate.up), events)
    content, partial_sum = carry.content
    position = (state.position + length) % gate.chunk
    return output, CarveState(carry.memory, content, partial_sum, position)


# ---- Stage 1: what depends on neither state nor erase gate ---------------------------------------


class Tiles(NamedTuple):
    """The inputs as tiles; the query scaled, restarts written as decays, `erase` holding logits
    under a content gate."""

    query: Float32[Array, "tiles B N C K"]
    key: Float32[Array, "tiles B N C K"]
    value: Float32[Array, "tiles B N C V"]
    log_decay: Float32[Array, "tiles B N C K"]
    erase: Float32[Array, "tiles B N C Ke"]
    write: Float32[Array, "tiles B N C Vg"]


def _cut_inputs(plan: Plan, inputs: RuleInputs, starts: Bool[Array, "B T"]) -> Tiles:
    heads, channels = inputs.value.shape[2], inputs.query.shape[3]
    log_decay = jnp.where(starts[..., None, None], RESTART, inputs.log_decay.astype(jnp.float32))
    t = Tiles(*(cut(x, plan.tile, heads) for x in inputs._replace(log_decay=log_decay)))
    log_decay = jnp.broadcast_to(t.log_decay, (*t.log_decay.shape[:-1], channels))
    return t._replace(query=plan.scale * t.query, log_decay=log_decay)


def _state_free(t: Tiles) -> scan.StateFree:
    """γ and its like, P, and the rows and columns of T before the erase gate."""
    decay = tiles.decay_factors(t.log_decay)
    k_columns = tiles.lower_halves(t.key, decay)
    q_rows = tiles.upper_halves(t.query, decay)
    return scan.StateFree(
        decay=decay,
        k_rows=tiles.upper_halves(t.key, decay),
        k_columns=k_columns,
        q_rows=q_rows,
        scores=tiles.scores(q_rows, k_columns, (t.query * t.key).sum(-1)),  # P [tiles, B, N, C, C]
        q_decayed=decay.start * t.query,  # γ⊙q [tiles, B, N, C, K]
        k_decayed=decay.start * t.key,  # γ⊙k [tiles, B, N, C, K]
        k_to_end=decay.tail * t.key,  # k⊙γ_C⊘γ [tiles, B, N, C, K]
        written=t.write * t.value,  # Z [tiles, B, N, C, V]
    )


def _content(
    plan: Plan, projections: Projections, events: Events
) -> tuple[ContentGate, scan.ChunkMarks]:
    """The content gate, and the places of the gate chunks."""
    assert plan.gate is not None
    down, up = projections
    return ContentGate(down, up, *plan.gate), scan.mark_chunks(*events, plan.tile, plan.chunks)


def _forward_group(
    plan: Plan, carry: Carry, inputs: RuleInputs, projections: Projections, events: Events
) -> tuple[Carry, tuple[Array, Array, Array | None]]:
    """One group of tiles: the next carry; output, start states and contents of its tiles."""
    # Stage 1: the tiles, and what depends on neither state nor erase gate.
    t = _cut_inputs(plan, inputs, events.starts)
    s = _state_free(t)

    # Stage 2: the scan. R [tiles, B, N, C, V], S_0 [tiles, B, N, K, V].
    if plan.gate is None:
        inverse, bk_decayed = scan.open_system(t.erase, s)  # A, Ē
        memory, (memories, residual) = scan.forward(carry.memory, inverse, bk_decayed, s)
        carry, contents = Carry(memory), None
    else:
        gate, marks = _content(plan, projections, events)
        (memory, *content), (memories, residual, contents) = scan.forward_carve(
            (carry.memory, *carry.content), t.erase, s, gate, marks
        )
        carry = Carry(memory, tuple(content))

    # Stage 3: O = (γ⊙q) S_0 + P R [tiles, B, N, C, V].
    output = matmul("...ck,...kv->...cv", s.q_decayed, memories)
    output = output + matmul("...rs,...sv->...rv", s.scores, residual)
    return carry, (uncut(output, inputs.value), memories, contents)


# ---- Groups of tiles, in order: forward, and backward from the last ------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(
    plan: Plan, inputs: RuleInputs, carry: Carry, projections: Projections, events: Events
) -> tuple[Array, Carry]:
    """Outputs and the final carry."""
    return _forward(plan, inputs, carry, projections, events)[0]


def _forward(
    plan: Plan, inputs: RuleInputs, carry: Carry, projections: Projections, events: Events
) -> tuple[tuple[Array, Carry], tuple]:
    tokens, length = plan.tile * plan.group, inputs.value.shape[1]
    padded = pad_time((inputs, events), tokens)

    def step(carry: Carry, index: Array) -> tuple[Carry, tuple[Array, Array, Array | None]]:
        inputs, events = take_group(padded, index, tokens)
        return _forward_group(plan, carry, inputs, projections, events)

    indices = jnp.arange(-(-length // tokens))
    carry, (output, memories, contents) = jax.lax.scan(step, carry, indices)
    output, memories, contents = kept((from_groups(output, length), memories, contents))
    return (output, carry), (inputs, projections, events, memories, contents)


def _backward(plan: Plan, residuals: tuple, cotangents: tuple) -> tuple:
    inputs, projections, events, memories, contents = residuals
    d_output, d_carry = cotangents

    tokens, length = plan.tile * plan.group, inputs.value.shape[1]
    padded = pad_time((inputs, events, d_output), tokens)

    def step(carry: tuple, group: tuple) -> tuple[tuple[Carry, Projections], RuleInputs]:
        (d_carry, d_projections), (index, memories, contents) = carry, group
        inputs, events, d_output = take_group(padded, index, tokens)
        d_carry, d_inputs, added = _backward_group(
            plan, d_carry, projections, inputs, events, d_output, memories, contents
        )
        return (d_carry, jax.tree.map(jnp.add, d_projections, added)), d_inputs

    xs = (jnp.arange(-(-length // tokens)), memories, contents)
    start = (d_carry, jax.tree.map(jnp.zeros_like, projections))
    (d_carry, d_projections), d_inputs = jax.lax.scan(step, start, xs, reverse=True)
    d_inputs = jax.tree.map(lambda x: from_groups(x, length), d_inputs)
    return d_inputs, d_carry, d_projections, None


def _backward_group(
    plan: Plan,
    d_carry: Carry,
    projections: Projections,
    inputs: RuleInputs,
    events: Events,
    d_output: Float[Array, "B T N V"],
    memories: Float32[Array, "tiles B N K V"],
    contents: Float32[Array, "tiles B N chunks V"] | None,
) -> tuple[Carry, RuleInputs, Projections]:
    """Gradients of one group of tiles: of its first carry, its inputs and the projections."""
    # Stage 1 again, and with the states at hand A, Ē and R of all tiles at once.
    t = _cut_inputs(plan, inputs, events.starts)
    s = _state_free(t)
    d_output = cut(d_output, plan.tile, inputs.value.shape[2])  # [tiles, B, N, C, V]
    d_projections: Projections = ()
    erase, slope = t.erase, None
    if contents is not None:
        gate, marks = _content(plan, projections, events)
        shift = scan.shift_rows(contents, gate, marks)  # [tiles, B, N, C, K]
        erase, slope = erase_gate(t.erase, shift, gate), scan.gate_slope(t.erase + shift, gate)
    inverse, bk_decayed = scan.open_system(erase, s)
    residual = scan.residuals(inverse, bk_decayed, s.written, memories)

    # Stage 2: the backward scan. dS_C [tiles, B, N, K, V], dW [tiles, B, N, C, V].
    if contents is None:
        d_memory, (d_memories, d_written) = scan.backward(
            d_carry.memory, d_output, inverse, bk_decayed, s
        )
        d_carry = Carry(d_memory)
        d_rows = scan.erase_rows_gradient(
            scan.system_gradient(d_written, residual), d_written, memories, s
        )
    else:
        (d_memory, *d_content), found = scan.backward_carve(
            (d_carry.memory, *d_carry.content),
            d_output,
            (t.key, inverse, bk_decayed, residual, memories, contents, slope),
            s,
            gate,
            marks,
        )
        d_memories, d_written, d_rows, d_sums, d_shift = found
        d_carry = Carry(d_memory, tuple(d_content))
        d_output = d_output + matmul("...bcj,...bnjv->...bncv", marks.members, d_sums)
        pull = jax.vjp(
            lambda down, up: erase_shift(contents, gate._replace(down=down, up=up)), *projections
        )[1]
        d_projections = pull(d_shift)

    # Stage 3: the inputs' gradients, in their own shapes.
    d = _input_gradients(t, s, erase, residual, memories, d_output, d_memories, d_written, d_rows)
    d = d._replace(query=plan.scale * d.query, erase=d.erase if slope is None else d.erase * slope)
    d_inputs = RuleInputs(*(uncut(x, like) for x, like in zip(d, inputs, strict=True)))
    keep = ~events.starts[..., None, None]
    d_inputs = d_inputs._replace(log_decay=jnp.where(keep, d_inputs.log_decay, 0))
    return d_carry, d_inputs, d_projections


def _input_gradients(
    t: Tiles,
    s: scan.StateFree,
    erase: Float32[Array, "tiles B N C #K"],
    residual: Float32[Array, "tiles B N C V"],
    memories: Float32[Array, "tiles B N K V"],
    d_output: Float32[Array, "tiles B N C V"],
    d_memories: Float32[Array, "tiles B N K V"],
    d_written: Float32[Array, "tiles B N C V"],
    d_rows: Float32[Array, "tiles B N C K"],
) -> Tiles:
    """Gradients of the tiles, all at once, from those of the outputs, of the states at the ends of
    the tiles, of W = Z − Ē S_0 (which is that of Z), and of the rows b⊙k."""
    # dP = tril(dO Rᵀ) and dT = −tril(dW Rᵀ, −1), level by level, and the diagonal of dP.
    d_scores = matmul("...rv,...sv->...rs", d_output, residual)
    query_blocks = tiles.score_blocks(d_scores)
    d_diagonal = jnp.diagonal(d_scores, axis1=-2, axis2=-1)[..., None]  # [tiles, B, N, C, 1]
    system_blocks = scan.system_gradient(d_written, residual)
    erase_rows = scan.erase_rows(erase, s.k_rows)

    # dq, by the rows of P and by (γ⊙q) S_0, whose gradient is dO S_0ᵀ.
    d_query = tiles.sum_upper(tiles.rows_gradient(query_blocks, s.k_columns), s.decay.upper)
    d_query += s.decay.start * matmul("...cv,...kv->...ck", d_output, memories)

    # dk, by the columns of P and T, and by (k⊙γ_C⊘γ)ᵀ R, whose gradient is R dS_Cᵀ.
    query_columns = tiles.columns_gradient(query_blocks, s.q_rows)
    system_columns = tiles.columns_gradient(system_blocks, erase_rows)
    d_columns = [a + b for a, b in zip(query_columns, system_columns, strict=True)]
    d_to_end = matmul("...cv,...kv->...ck", residual, d_memories)
    d_key = tiles.sum_lower(d_columns, s.decay.lower) + s.decay.tail * d_to_end

    # dg: g_i decays every pair of a row at or after i and a column before it, S_0 and the end
    # state.
    through_rows = erase * t.key * d_rows + t.query * d_query - t.key * d_key
    through_end = s.decay.total * (d_memories * memories).sum(-1) + (s.k_to_end * d_to_end).sum(-2)
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
