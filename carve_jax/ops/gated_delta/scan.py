"""The inter-chunk scan of the WY form: what carries the state from tile to tile, and back.

GDN-2 has the inverses ready and takes three products per tile. CARVE's erase gate needs the outputs
of the gate chunk before, so its inverses are formed on the way. Where several gate chunks meet in a
tile, it is solved that often: solve j is right for the rows of the first j chunks, all that the
content of chunk j + 1 needs. The backward scan repeats the argument from the last chunk to the
first. Both rules thus run the same arithmetic on the same tiles. With content of two chunks back
(lag 2) each solve makes two chunks right, and half as many are needed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.ops.content_gate import ContentGate, erase_gate, erase_shift, pushed
from carve_jax.ops.gated_delta import tiles
from carve_jax.ops.gated_delta.tiles import Decay, Halves, matmul
from carve_jax.ops.gated_delta.tiling import cut_time
from carve_jax.shapes import Array, Bool, Float32


class StateFree(NamedTuple):
    """What depends on neither state nor erase gate, for tiles [tiles, B, N].

    Attributes:
      decay: γ and its like: every decay factor.
      k_rows, k_columns, q_rows: k and q decayed as operands of the scores, level by level.
      scores: P.
      q_decayed: γ⊙q, which reads the start state.
      k_decayed: γ⊙k, so that Ē = b⊙(γ⊙k).
      k_to_end: k⊙γ_C⊘γ, which writes into the end state.
      written: Z = w⊙v.
    """

    decay: Decay
    k_rows: Halves
    k_columns: Halves
    q_rows: Halves
    scores: Float32[Array, "*tiles C C"]
    q_decayed: Float32[Array, "*tiles C K"]
    k_decayed: Float32[Array, "*tiles C K"]
    k_to_end: Float32[Array, "*tiles C K"]
    written: Float32[Array, "*tiles C V"]


# ---- Where gate chunks and segments lie ----------------------------------------------------------


class Events(NamedTuple):
    """Tokens that start a segment, and tokens that complete a gate chunk."""

    starts: Bool[Array, "B T"]
    ends: Bool[Array, "B T"]


class ChunkMarks(NamedTuple):
    """Where the gate chunks lie in the tiles; chunk 0 of a tile is the one that it starts in.

    Attributes:
      members: 1 where a token belongs to the tile's chunk j.
      fresh: chunk j starts a segment.
      last: 1 at the chunk that the tile ends in.
      full: that chunk is complete at the tile's end.
    """

    members: Float32[Array, "tiles B C chunks"]
    fresh: Bool[Array, "tiles B chunks"]
    last: Float32[Array, "tiles B chunks"]
    full: Bool[Array, "tiles B"]


def most_chunks(tile: int, chunk: int, aligned: bool) -> int:
    """The most gate chunks that meet in one tile."""
    if aligned and (chunk % tile == 0 or tile % chunk == 0):
        return max(1, tile // chunk)
    return 1 + -(-(tile - 1) // chunk)


def mark_chunks(
    starts: Bool[Array, "B T"], ends: Bool[Array, "B T"], tile: int, chunks: int
) -> ChunkMarks:
    """Marks from the events of a sequence that starts on a tile."""
    starts, ends = cut_time(starts, tile), cut_time(ends, tile)  # [tiles, B, C]
    local = jnp.cumsum(ends, axis=-1) - ends  # chunks completed in the tile before each token
    members = jax.nn.one_hot(local, chunks, dtype=jnp.float32)
    fresh = (starts[..., None] & (members > 0)).any(axis=-2)
    return ChunkMarks(members, fresh, members[..., -1, :], ends[..., -1])


# ---- One tile: its system, its solution, its end state -------------------------------------------


def erase_rows(erase: Float32[Array, "*tiles C #K"], k_rows: Halves) -> Halves:
    """Rows b⊙k of the system's scores, decayed."""
    return [tiles.split(erase, rows.shape[-2])[1] * rows for rows in k_rows]


def open_system(
    erase: Float32[Array, "*tiles C #K"], s: StateFree
) -> tuple[Float32[Array, "*tiles C C"], Float32[Array, "*tiles C K"]]:
    """A = (I + T)⁻¹ and Ē = γ⊙b⊙k."""
    rows = erase_rows(erase, s.k_rows)
    return tiles.unit_inverse(rows, s.k_columns), erase * s.k_decayed


def residuals(
    inverse: Float32[Array, "*tiles C C"],
    bk_decayed: Float32[Array, "*tiles C K"],
    written: Float32[Array, "*tiles C V"],
    memory: Float32[Array, "*tiles K V"],
) -> Float32[Array, "*tiles C V"]:
    """R = A (Z − Ē S_0)."""
    right = written - matmul("...ck,...kv->...cv", bk_decayed, memory)
    return matmul("...rs,...sv->...rv", inverse, right)


def _next_memory(
    memory: Float32[Array, "B N K V"], residual: Float32[Array, "B N C V"], s: StateFree
) -> Float32[Array, "B N K V"]:
    """S_C = Diag(γ_C) S_0 + (k⊙γ_C⊘γ)ᵀ R."""
    added = matmul("...ck,...cv->...kv", s.k_to_end, residual)
    return s.decay.total[..., None] * memory + added


def system_gradient(
    d_written: Float32[Array, "*tiles C V"], residual: Float32[Array, "*tiles C V"]
) -> Halves:
    """Gradient of T's blocks from that of W = Z − Ē S_0: dT = −tril(dW Rᵀ, −1)."""
    return tiles.score_blocks(-matmul("...rv,...sv->...rs", d_written, residual))


def erase_rows_gradient(
    d_system: Halves,
    d_written: Float32[Array, "*tiles C V"],
    memory: Float32[Array, "*tiles K V"],
    s: StateFree,
) -> Float32[Array, "*tiles C K"]:
    """Gradient of b⊙k, through the rows of T and through Ē, whose gradient is −dW S_0ᵀ."""
    d_rows = tiles.sum_upper(tiles.rows_gradient(d_system, s.k_columns), s.decay.upper)
    return d_rows - s.decay.start * matmul("...cv,...kv->...ck", d_written, memory)


# ---- GDN-2 ---------------------------------------------------------------------------------------


def forward(
    memory: Float32[Array, "B N K V"],
    inverse: Float32[Array, "tiles B N C C"],
    bk_decayed: Float32[Array, "tiles B N C K"],
    s: StateFree,
) -> tuple:
    """Scan the plain rule.

    Returns:
      The last state [B, N, K, V]; for the tiles the states at their starts [tiles, B, N, K, V] and
      the residuals R [tiles, B, N, C, V].
    """

    def step(memory: Array, tile: tuple) -> tuple:
        inverse, bk_decayed, s = tile
        residual = residuals(inverse, bk_decayed, s.written, memory)  # [B, N, C, V]
        return _next_memory(memory, residual, s), (memory, residual)

    return jax.lax.scan(step, memory, (inverse, bk_decayed, s))


def backward(
    d_memory: Float32[Array, "B N K V"],
    d_output: Float32[Array, "tiles B N C V"],
    inverse: Float32[Array, "tiles B N C C"],
    bk_decayed: Float32[Array, "tiles B N C K"],
    s: StateFree,
) -> tuple:
    """Scan the plain rule backward.

        dR = Pᵀ dO + (k⊙γ_C⊘γ) dS_C    dW = Aᵀ dR    dS_0 = (γ⊙q)ᵀ dO + Diag(γ_C) dS_C − Ēᵀ dW

    Returns:
      Gradient of the first state [B, N, K, V]; for the tiles those of the states at their ends
      [tiles, B, N, K, V] and of W = Z − Ē S_0 [tiles, B, N, C, V].
    """
    d_residual = matmul("...rs,...rv->...sv", s.scores, d_output)  # [tiles, B, N, C, V]
    d_start = matmul("...ck,...cv->...kv", s.q_decayed, d_output)  # [tiles, B, N, K, V]

    def step(d_memory: Array, tile: tuple) -> tuple:
        d_residual, d_start, inverse, bk_decayed, k_to_end, total = tile
        d_residual = d_residual + matmul("...ck,...kv->...cv", k_to_end, d_memory)
        d_written = matmul("...rs,...rv->...sv", inverse, d_residual)  # [B, N, C, V]
        d_start = d_start + total[..., None] * d_memory
        d_start = d_start - matmul("...ck,...cv->...kv", bk_decayed, d_written)
        return d_start, (d_memory, d_written)

    xs = (d_residual, d_start, inverse, bk_decayed, s.k_to_end, s.decay.total)
    return jax.lax.scan(step, d_memory, xs, reverse=True)


# ---- CARVE ---------------------------------------------------------------------------------------


def shift_rows(
    contents: Float32[Array, "*tiles B N chunks V"], gate: ContentGate, marks: ChunkMarks
) -> Float32[Array, "*tiles B N C K"]:
    """Shift of the erase logits of each token, from the content of its gate chunk."""
    return matmul("...bcj,...bnjk->...bnck", marks.members, erase_shift(contents, gate))


def gate_slope(logits: Float32[Array, "*rest"], gate: ContentGate) -> Float32[Array, "*rest"]:
    """Derivative of the erase gate in its logits."""
    sigma = jax.nn.sigmoid(logits)
    return gate.scale * sigma * (1.0 - sigma)


class Contents:
    """How the contents of a tile's gate chunks follow from the sums of outputs; all is linear.

    Contents known at its end are those of its chunks and, under a lag of 2, of the chunk behind the
    last: `known` of them.

    Args:
      gate: the content gate.
      marks: where the gate chunks lie in one tile, [B, …].
    """

    def __init__(self, gate: ContentGate, marks: ChunkMarks) -> None:
        self._gate, self._marks = gate, marks
        self._chunks = marks.last.shape[-1]
        self.turns = -(-self._chunks // gate.lag) - 1  # solves before the one that is right

    def known(
        self, handed: Float32[Array, "B N *lag V"], sums: Float32[Array, "B N chunks V"]
    ) -> Float32[Array, "B N known V"]:
        """Contents from what the tile before handed on and the sums over this one's chunks."""
        lag, fresh = self._gate.lag, self._marks.fresh  # [B, chunks]
        first = handed[..., None, :] if lag == 1 else handed
        contents = jnp.concatenate([first, sums[..., :-1, :] / self._gate.chunk], axis=-2)
        if lag == 2:  # a segment's second chunk has no content either
            fresh = jnp.pad(fresh, ((0, 0), (0, 1))) | jnp.pad(fresh, ((0, 0), (1, 0)))
        return jnp.where(fresh[:, None, :, None], 0.0, contents)

    def of_chunks(self, known: Float32[Array, "B N known V"]) -> Float32[Array, "B N chunks V"]:
        """Those of the tile's own chunks."""
        return known[..., : self._chunks, :]

    def handed_on(
        self, known: Float32[Array, "B N known V"], sums: Float32[Array, "B N chunks V"]
    ) -> tuple[Float32[Array, "B N *lag V"], Float32[Array, "B N V"]]:
        """Content and partial sum that the next tile's first chunk goes on with."""
        last, lag = self._marks.last, self._gate.lag
        full = self._marks.full[:, None, None]
        last_sum = matmul("...bj,...bnjv->...bnv", last, sums)
        here = [
            matmul("...bj,...bnjv->...bnv", last, known[..., i : i + self._chunks, :])
            for i in range(lag)
        ]
        content = here[0] if lag == 1 else jnp.stack(here, axis=-2)
        next_content = pushed(content, last_sum / self._gate.chunk)
        return (
            jnp.where(full if lag == 1 else full[..., None], next_content, content),
            jnp.where(full, 0.0, last_sum),
        )


def forward_carve(
    carry: tuple,
    logits: Float32[Array, "tiles B N C K"],
    s: StateFree,
    gate: ContentGate,
    marks: ChunkMarks,
) -> tuple:
    """Scan CARVE.

    Args:
      carry: state [B, N, K, V], content and partial sum as in `CarveState`, before the first tile.
      logits: of the erase gate, without content.
      s: what depends on neither.
      gate: the content gate.
      marks: where the gate chunks lie.

    Returns:
      The last carry; for the tiles the states at their starts [tiles, B, N, K, V], the residuals R
      [tiles, B, N, C, V] and the contents of their gate chunks [tiles, B, N, chunks, V].
    """
    # Sums over each gate chunk of the rows of γ⊙q and P, which give the sums of its outputs.
    q_sums = matmul("...bcj,...bnck->...bnjk", marks.members, s.q_decayed)
    score_sums = matmul("...bcj,...bncs->...bnjs", marks.members, s.scores)

    def step(carry: tuple, tile: tuple) -> tuple:
        memory, handed, partial_sum = carry
        logits, q_sums, score_sums, s, marks = tile
        contents = Contents(gate, marks)
        partial_sum = jnp.where(marks.fresh[:, None, :1], 0.0, partial_sum)
        read = matmul("...jk,...kv->...jv", q_sums, memory)  # [B, N, chunks, V]

        def residual_under(known: Array) -> Array:
            shift = shift_rows(contents.of_chunks(known), gate, marks)  # [B, N, C, K]
            inverse, bk_decayed = open_system(erase_gate(logits, shift, gate), s)
            return residuals(inverse, bk_decayed, s.written, memory)  # [B, N, C, V]

        def sums_under(residual: Array) -> Array:
            sums = read + matmul("...js,...sv->...jv", score_sums, residual)
            return sums.at[..., 0, :].add(partial_sum)  # [B, N, chunks, V]

        def next_chunks(_: Array, known: Array) -> Array:
            return contents.known(handed, sums_under(residual_under(known)))

        # Solve j makes the content of chunk j + 1 right; the last solve is right for all rows.
        known = contents.known(handed, jnp.zeros_like(read))
        known = jax.lax.fori_loop(0, contents.turns, next_chunks, known)
        residual = residual_under(known)
        sums = sums_under(residual)
        if gate.lag == 2:  # of the chunk behind the last, the content comes with the last solve
            known = contents.known(handed, sums)
        carry = (_next_memory(memory, residual, s), *contents.handed_on(known, sums))
        return carry, (memory, residual, contents.of_chunks(known))

    return jax.lax.scan(step, carry, (logits, q_sums, score_sums, s, marks))


def backward_carve(
    d_carry: tuple,
    d_output: Float32[Array, "tiles B N C V"],
    recomputed: tuple,
    s: StateFree,
    gate: ContentGate,
    marks: ChunkMarks,
) -> tuple:
    """Scan CARVE backward.

    Args:
      d_carry: gradient of the last state, content and partial sum.
      d_output: of the outputs, without what reaches them through the content.
      recomputed: for the tiles k, A, Ē, R, the states at their starts, the contents of their gate
        chunks and the slope of the erase gate.
      s, gate, marks: as `forward_carve` takes them.

    Returns:
      Gradient of the first carry; for the tiles those of the states at their ends
      [tiles, B, N, K, V], of W = Z − Ē S_0 [tiles, B, N, C, V], of b⊙k [tiles, B, N, C, K], of the
      sums of outputs [tiles, B, N, chunks, V] and of the shifts [tiles, B, N, chunks, K].
    """
    d_residual = matmul("...rs,...rv->...sv", s.scores, d_output)  # [tiles, B, N, C, V]
    d_start = matmul("...ck,...cv->...kv", s.q_decayed, d_output)  # [tiles, B, N, K, V]
    q_sums = matmul("...bcj,...bnck->...bnjk", marks.members, s.q_decayed)
    score_sums = matmul("...bcj,...bncs->...bnjs", marks.members, s.scores)

    def step(d_carry: tuple, tile: tuple) -> tuple:
        d_memory, *d_handed_on = d_carry
        d_residual, d_start, q_sums, score_sums, recomputed, s, marks = tile
        key, inverse, bk_decayed, residual, memory, of_chunks, slope = recomputed
        contents = Contents(gate, marks)
        zeros = jnp.zeros_like(of_chunks)
        handed = jnp.zeros_like(d_handed_on[0])
        known_pull = jax.linear_transpose(contents.known, handed, zeros)
        # What the next tile says of the contents known here, and of the sums.
        known = jnp.zeros_like(contents.known(handed, zeros))
        d_known_end, d_sums_end = jax.linear_transpose(contents.handed_on, known, zeros)(
            tuple(d_handed_on)
        )
        d_residual = d_residual + matmul("...ck,...kv->...cv", s.k_to_end, d_memory)
        shift_pull = jax.vjp(lambda c: erase_shift(c, gate), of_chunks)[1]
        chunks_pull = jax.linear_transpose(contents.of_chunks, known)

        def gradients_under(d_sums: Array) -> tuple[Array, Array, Array]:
            right = d_residual + matmul("...js,...jv->...sv", score_sums, d_sums)
            d_written = matmul("...rs,...rv->...sv", inverse, right)  # [B, N, C, V]
            d_system = system_gradient(d_written, residual)
            d_rows = erase_rows_gradient(d_system, d_written, memory, s)  # [B, N, C, K]
            d_logits = d_rows * key * slope
            d_shift = matmul("...bcj,...bnck->...bnjk", marks.members, d_logits)
            return d_written, d_rows, d_shift

        def through_contents(d_shift: Array) -> tuple[Array, Array]:
            """Gradients of what was handed to this tile, and of the sums."""
            d_of_chunks = chunks_pull(shift_pull(d_shift)[0])[0]
            d_handed, d_sums = known_pull(d_known_end + d_of_chunks)
            return d_handed, d_sums_end + d_sums

        def previous_chunks(_: Array, d_sums: Array) -> Array:
            return through_contents(gradients_under(d_sums)[2])[1]

        # From the last chunk to the first: each turn makes the gradients of `lag` more sums right.
        d_sums = d_sums_end + known_pull(d_known_end)[1]
        d_sums = jax.lax.fori_loop(0, contents.turns, previous_chunks, d_sums)
        d_written, d_rows, d_shift = gradients_under(d_sums)
        d_start = d_start + matmul("...jk,...jv->...kv", q_sums, d_sums)
        d_start = d_start + s.decay.total[..., None] * d_memory
        d_start = d_start - matmul("...ck,...cv->...kv", bk_decayed, d_written)
        d_partial = jnp.where(marks.fresh[:, None, :1], 0.0, d_sums[..., 0, :])
        d_carry = (d_start, through_contents(d_shift)[0], d_partial)
        return d_carry, (d_memory, d_written, d_rows, d_sums, d_shift)

    xs = (d_residual, d_start, q_sums, score_sums, recomputed, s, marks)
    return jax.lax.scan(step, d_carry, xs, reverse=True)
