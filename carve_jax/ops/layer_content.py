"""Content that a layer hands to the layer above: an erase gate that waits for nothing in time.

Layer l reads means of outputs of layer l − 1, all known before its own rule begins, so that b is
computed beforehand and the rule is GDN-2's. Each layer sums its own outputs by gate chunk, keeps
what `CarveState` keeps of them, and hands up the content of every gate chunk of the call.
"""

import jax.numpy as jnp

from carve_jax.ops.content_gate import ContentGate, erase_shift
from carve_jax.ops.gated_delta.layout import Layout
from carve_jax.ops.gated_delta.reference import segment_starts
from carve_jax.shapes import Array, Float, Float32, Int, Int32

OwnContent = tuple[Float32[Array, "B N V"], Float32[Array, "B N V"], Int32[Array, " B"]]
"""Content, partial sum and position, as in `CarveState`."""


def chunks_of(length: int, chunk: int, continued: bool) -> int:
    """Gate chunks of L = `chunk` tokens that a call of so many tokens may touch.

    Args:
      length: T.
      chunk: L.
      continued: the call goes on from a cache, and so may begin anywhere in a gate chunk.
    """
    return 1 + (length + chunk - 2) // chunk if continued else -(-length // chunk)


def content_of_outputs(
    output: Float[Array, "B T N V"],
    before: OwnContent | None,
    segment_ids: Int[Array, "B T"] | None,
    chunk: int,
) -> tuple[Float32[Array, "B chunks N V"], OwnContent | None]:
    """Content of each gate chunk: the mean of the outputs of the chunk before, 0 in a segment's
    first; summed in float32.

    Args:
      output: of the rule, as it is rounded.
      before: what was kept before the call, which belongs to a row's first segment; None for a call
        that starts its rows.
      segment_ids: non-decreasing runs, which start on gate chunks.
      chunk: L.

    Returns:
      The contents, and what is kept after the call (None if nothing was given).
    """
    batch, length = output.shape[:2]
    layout = Layout(chunk, chunk, length, None if before is None else before[2])
    chunks = chunks_of(length, chunk, before is not None)
    sums = output.astype(jnp.float32)
    if length > 1:  # one token lies in one gate chunk alone
        sums = layout.lay(sums)
        sums = jnp.pad(sums, ((0, 0), (0, chunks * chunk - sums.shape[1]), (0, 0), (0, 0)))
        sums = sums.reshape(batch, chunks, chunk, *sums.shape[2:]).sum(axis=2)
    first = jnp.zeros_like(sums[:, 0])
    if before is not None:
        first, partial_sum, _ = before
        sums = sums.at[:, 0].add(partial_sum)
    starts = None if segment_ids is None else segment_starts(segment_ids, batch, length)
    contents = layout.contents(first, sums, layout.means(starts, batch))
    return contents, None if before is None else layout.ending(contents, sums)


def shift_from_below(
    contents: Float32[Array, "B chunks N V"],
    gate: ContentGate,
    position: Int32[Array, " B"] | None,
    length: int,
) -> Float32[Array, "B T N K"]:
    """Shift of each token's erase logits, from the content of its gate chunk.

    Args:
      contents: of the layer below, by `content_of_outputs`.
      gate: the content gate.
      position: tokens read before the call in each row's first gate chunk; None for none.
      length: T.
    """
    shift = jnp.moveaxis(erase_shift(jnp.moveaxis(contents, 1, 2), gate), 2, 1)
    if position is None:
        batch, chunks, *others = shift.shape
        shift = jnp.broadcast_to(shift[:, :, None], (batch, chunks, gate.chunk, *others))
        return shift.reshape(batch, chunks * gate.chunk, *others)[:, :length]
    which = (position[:, None] + jnp.arange(length)[None]) // gate.chunk  # [B, T]
    return jnp.take_along_axis(shift, which[..., None, None], axis=1)
