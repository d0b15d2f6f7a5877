"""The sequential part of the WY form: what carries state from tile to tile, forwards and back.

GDN-2 has the inverses ready and walks with three products a tile. CARVE's erase gate
needs the outputs of the gate chunk before, so its inverses are formed on the way. Where J gate
chunks meet in a tile, it is solved J times: solve j is right for the rows of the first j
chunks, all that the content of chunk j + 1 needs. The backward walk repeats the argument from the
last chunk to the first. Both rules thus run the same arithmetic on the same tiles.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.ops.content_gate import ContentGate, erase_gate, erase_shift
from carve_jax.ops.gated_delta import tiles
from carve_jax.ops.gated_delta.tiles import Decay, Halves, matmul
from carve_jax.ops.gated_delta.tiling import cut_time
from carve_jax.shapes import Array


class Shared(NamedTuple):
    """What depends on neither state nor erase gate: [tiles, B, N, C, channels].

    Attributes:
      decay: the decay factors.
      key_rows, key_columns, query_rows: k and q decayed as operands of the scores.
      scores: P.
      query_start: γ⊙q, what reads the start state.
      key_start: γ⊙k, so that Ē = b⊙(γ⊙k).
      key_tail: k⊙γ_C⊘γ, what writes into the end state.
      written: Z = w⊙v.
    """

    decay: Decay
    key_rows: Halves
    key_columns: Halves
    query_rows: Halves
    scores: Array
    query_start: Array
    key_start: Array
    key_tail: Array
    written: Array


class Events(NamedTuple):
    """[B, T]: tokens that start a segment, and tokens that complete a gate chunk."""

    starts: Array
    ends: Array


class ChunkMarks(NamedTuple):
    """Where the gate chunks lie in the tiles; chunk 0 of a tile is the one that it starts in.

    Attributes:
      members: [tiles, B, C, J], 1 where a token belongs to the tile's chunk j.
      fresh: [tiles, B, J], chunk j starts a segment.
      last: [tiles, B, J], 1 at the chunk that the tile ends in.
      full: [tiles, B], that chunk is complete at the tile's end.
    """

    members: Array
    fresh: Array
    last: Array
    full: Array


def most_chunks(tile: int, chunk: int, aligned: bool) -> int:
    """The most gate chunks that meet in one tile."""
    if aligned and (chunk % tile == 0 or tile % chunk == 0):
        return max(1, tile // chunk)
    return 1 + -(-(tile - 1) // chunk)


def mark_chunks(starts: Array, ends: Array, tile: int, chunks: int) -> ChunkMarks:
    """Marks from the events of a sequence that starts on a tile."""
    starts, ends = cut_time(starts, tile), cut_time(ends, tile)
    local = jnp.cumsum(ends, axis=-1) - ends  # chunks completed in the tile before each token
    members = jax.nn.one_hot(local, chunks, dtype=jnp.float32)
    fresh = (starts[..., None] & (members > 0)).any(axis=-2)
    return ChunkMarks(members, fresh, members[..., -1, :], ends[..., -1])


def erase_rows(erase: Array, key_rows: Halves) -> Halves:
    """Rows b⊙k of the system's scores, decayed."""
    return [tiles.split(erase, rows.shape[-2])[1] * rows for rows in key_rows]


def open_system(erase: Array, s: Shared) -> tuple[Array, Array]:
    """A = (I + T)⁻¹ and Ē."""
    rows = erase_rows(erase, s.key_rows)
    return tiles.unit_inverse(rows, s.key_columns), erase * s.key_start


def residuals(inverse: Array, erased: Array, written: Array, memory: Array) -> Array:
    """R = A (Z − Ē S_0)."""
    right = written - matmul("...ck,...kv->...cv", erased, memory)
    return matmul("...rs,...sv->...rv", inverse, right)


def _next_memory(memory: Array, residual: Array, s: Shared) -> Array:
    added = matmul("...ck,...cv->...kv", s.key_tail, residual)
    return s.decay.total[..., None] * memory + added


def forward(memory: Array, inverse: Array, erased: Array, s: Shared) -> tuple:
    """Walk the plain rule: final memory, and the start memories and residuals R of the tiles."""

    def step(memory: Array, tile: tuple) -> tuple:
        inverse, erased, s = tile
        residual = residuals(inverse, erased, s.written, memory)
        return _next_memory(memory, residual, s), (memory, residual)

    return jax.lax.scan(step, memory, (inverse, erased, s))


def backward(d_memory: Array, d_output: Array, inverse: Array, erased: Array, s: Shared) -> tuple:
    """Walk the plain rule back: gradient of the first memory, and those of the end memories and of
    W = Z − Ē S_0 of the tiles."""
    d_residual = matmul("...rs,...rv->...sv", s.scores, d_output)
    d_start = matmul("...ck,...cv->...kv", s.query_start, d_output)

    def step(d_memory: Array, tile: tuple) -> tuple:
        d_residual, d_start, inverse, erased, key_tail, total = tile
        d_residual = d_residual + matmul("...ck,...kv->...cv", key_tail, d_memory)
        d_written = matmul("...rs,...rv->...sv", inverse, d_residual)
        d_start = d_start + total[..., None] * d_memory
        d_start = d_start - matmul("...ck,...cv->...kv", erased, d_written)
        return d_start, (d_memory, d_written)

    xs = (d_residual, d_start, inverse, erased, s.key_tail, s.decay.total)
    return jax.lax.scan(step, d_memory, xs, reverse=True)


def shift_rows(contents: Array, gate: ContentGate, marks: ChunkMarks) -> Array:
    """Shift of the erase logits of each token from the contents [.., B, N, J, V] of its chunk."""
    return matmul("...bcj,...bnjk->...bnck", marks.members, erase_shift(contents, gate))


def gate_slope(logits: Array, gate: ContentGate) -> Array:
    """Derivative of the erase gate."""
    sigma = jax.nn.sigmoid(logits)
    return gate.scale * sigma * (1.0 - sigma)


def _following(sums: Array, first: Array, marks: ChunkMarks, chunk: int) -> Array:
    """Content of each chunk of a tile from the sums of outputs and the content of the first."""
    contents = jnp.concatenate([first[..., None, :], sums[..., :-1, :] / chunk], axis=-2)
    return jnp.where(marks.fresh[..., None, :, None], 0.0, contents)


def forward_carve(carry: tuple, logits: Array, s: Shared, gate: ContentGate, marks: ChunkMarks):
    """Walk CARVE: carry is (memory, content, partial_sum).

    Returns the final carry, and for the tiles the start memories, the residuals R and the contents
    [tiles, B, N, J, V] of the chunks.
    """
    query_sums = matmul("...bcj,...bnck->...bnjk", marks.members, s.query_start)
    score_sums = matmul("...bcj,...bncs->...bnjs", marks.members, s.scores)

    def step(carry: tuple, tile: tuple) -> tuple:
        memory, content, partial_sum = carry
        logits, query_sums, score_sums, s, marks = tile
        partial_sum = jnp.where(marks.fresh[:, None, :1], 0.0, partial_sum)
        read = matmul("...jk,...kv->...jv", query_sums, memory)

        def residual_under(contents: Array) -> Array:
            shift = shift_rows(contents, gate, marks)
            inverse, erased = open_system(erase_gate(logits, shift, gate), s)
            return residuals(inverse, erased, s.written, memory)

        def sums_under(residual: Array) -> Array:
            sums = read + matmul("...js,...sv->...jv", score_sums, residual)
            return sums.at[..., 0, :].add(partial_sum)

        def next_chunk(_: Array, contents: Array) -> Array:
            return _following(sums_under(residual_under(contents)), content, marks, gate.chunk)

        contents = _following(jnp.zeros_like(read), content, marks, gate.chunk)
        contents = jax.lax.fori_loop(0, read.shape[-2] - 1, next_chunk, contents)
        residual = residual_under(contents)
        last_sum = matmul("...bj,...bnjv->...bnv", marks.last, sums_under(residual))
        last_content = matmul("...bj,...bnjv->...bnv", marks.last, contents)
        full = marks.full[:, None, None]
        carry = (
            _next_memory(memory, residual, s),
            jnp.where(full, last_sum / gate.chunk, last_content),
            jnp.where(full, 0.0, last_sum),
        )
        return carry, (memory, residual, contents)

    return jax.lax.scan(step, carry, (logits, query_sums, score_sums, s, marks))


def system_gradient(d_written: Array, residual: Array) -> Halves:
    """Gradient of T's blocks from that of W = Z − Ē S_0."""
    return tiles.score_blocks(-matmul("...rv,...sv->...rs", d_written, residual))


def edit_rows_gradient(blocks: Halves, d_written: Array, memories: Array, s: Shared) -> Array:
    """Gradient of b⊙k from those of T's blocks and of W = Z − Ē S_0."""
    d_rows = tiles.sum_upper(tiles.rows_gradient(blocks, s.key_columns), s.decay.upper)
    return d_rows - s.decay.start * matmul("...cv,...kv->...ck", d_written, memories)


def backward_carve(
    d_carry: tuple,
    d_output: Array,
    recomputed: tuple,
    s: Shared,
    gate: ContentGate,
    marks: ChunkMarks,
) -> tuple:
    """Walk CARVE back: d_carry is the gradient of (memory, content, partial_sum).

    Returns the gradient of the first carry, and for the tiles those of the end memories, of
    W = Z − Ē S_0, of the rows b⊙k, of the sums of outputs [tiles, B, N, J, V] and of the shifts
    [tiles, B, N, J, K].
    """
    d_residual = matmul("...rs,...rv->...sv", s.scores, d_output)
    d_start = matmul("...ck,...cv->...kv", s.query_start, d_output)
    query_sums = matmul("...bcj,...bnck->...bnjk", marks.members, s.query_start)
    score_sums = matmul("...bcj,...bncs->...bnjs", marks.members, s.scores)

    def step(d_carry: tuple, tile: tuple) -> tuple:
        d_memory, d_content, d_partial = d_carry
        d_residual, d_start, query_sums, score_sums, recomputed, s, marks = tile
        key, inverse, erased, residual, memory, contents, slope = recomputed
        full = marks.full[:, None, None]
        d_last = jnp.where(full, d_content / gate.chunk, d_partial)
        d_sums_end = matmul("...bj,...bnv->...bnjv", marks.last, d_last)
        d_contents_end = matmul(
            "...bj,...bnv->...bnjv", marks.last, jnp.where(full, 0.0, d_content)
        )
        d_residual = d_residual + matmul("...ck,...kv->...cv", s.key_tail, d_memory)
        _, content_pull = jax.vjp(lambda c: erase_shift(c, gate), contents)

        def edits_under(d_sums: Array) -> tuple[Array, Array, Array]:
            right = d_residual + matmul("...js,...jv->...sv", score_sums, d_sums)
            d_written = matmul("...rs,...rv->...sv", inverse, right)
            blocks = system_gradient(d_written, residual)
            d_rows = edit_rows_gradient(blocks, d_written, memory, s)
            d_logits = d_rows * key * slope
            d_shift = matmul("...bcj,...bnck->...bnjk", marks.members, d_logits)
            return d_written, d_rows, d_shift

        def contents_under(d_shift: Array) -> Array:
            d_contents = d_contents_end + content_pull(d_shift)[0]
            return jnp.where(marks.fresh[:, None, :, None], 0.0, d_contents)

        def previous_chunk(_: Array, d_sums: Array) -> Array:
            d_contents = contents_under(edits_under(d_sums)[2])
            return d_sums_end.at[..., :-1, :].add(d_contents[..., 1:, :] / gate.chunk)

        d_sums = jax.lax.fori_loop(0, contents.shape[-2] - 1, previous_chunk, d_sums_end)
        d_written, d_rows, d_shift = edits_under(d_sums)
        d_start = d_start + matmul("...jk,...jv->...kv", query_sums, d_sums)
        d_start = d_start + s.decay.total[..., None] * d_memory
        d_start = d_start - matmul("...ck,...cv->...kv", erased, d_written)
        d_partial = jnp.where(marks.fresh[:, None, :1], 0.0, d_sums[..., 0, :])
        d_carry = (d_start, contents_under(d_shift)[..., 0, :], d_partial)
        return d_carry, (d_memory, d_written, d_rows, d_sums, d_shift)

    xs = (d_residual, d_start, query_sums, score_sums, recomputed, s, marks)
    return jax.lax.scan(step, d_carry, xs, reverse=True)
