"""Rotations by angles that add up along the sequence (data-dependent rotary embedding)."""

import jax
import jax.numpy as jnp

from carve_jax.ops.gated_delta import checks
from carve_jax.ops.gated_delta.reference import segment_starts
from carve_jax.shapes import Array, Float, Float32, Int, Int32

# Angles add up as integers, in units of 2⁻³¹ turns. Their sum is exact however the sequence is
# split and however long it is, and int32 wraps at two whole turns, where nothing changes. Sums of
# float32 radians would be off by thousandths after 100,000 tokens.
UNITS = 2.0**31


def cumulative_turns(
    increment: Float32[Array, "B T *rest"],
    *,
    initial: Int32[Array, "B *rest"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
) -> tuple[Float32[Array, "B T *rest"], Int32[Array, "B *rest"]]:
    """Sum of the increments from the start of each document up to each token, itself included.

    Args:
      increment: how far each token turns, in turns (1 is 2π); finite.
      initial: what an earlier call returned, which belongs to the row's first document; None
        for 0. Any split of a sequence into calls gives the same bits.
      segment_ids: non-decreasing document numbers; the sum restarts in each document.

    Returns:
      The sums modulo whole turns, in [−1, 1], and the last of them in units of 2⁻³¹ turns, for
      the next call. Gradients flow to `increment`.

    Raises:
      ValueError: when a shape does not fit.
      TypeError: when a dtype does not.
    """
    none = jnp.zeros((increment.shape[0], *increment.shape[2:]), jnp.int32)
    initial = none if initial is None else initial
    checks.check_state({"initial": initial}, {"initial": none})
    checks.check_segments(segment_ids, {"B": increment.shape[0], "T": increment.shape[1]})
    steps = jax.lax.stop_gradient(increment)
    units = jnp.round((steps - jnp.round(steps)) * UNITS).astype(jnp.int32)
    start = None if segment_ids is None else _first_tokens(segment_ids)
    total = _sum_since(units, start)
    if start is None:
        total += initial[:, None]
    else:
        in_first = jnp.expand_dims(start == 0, range(2, increment.ndim))
        total += jnp.where(in_first, initial[:, None], 0)
    return _as_turns(increment, total, start), total[:, -1]


def rotate_pairs(
    x: Float[Array, "B T M N K"], turns: Float32[Array, "B T N J"]
) -> Float32[Array, "B T M N K"]:
    """Rotate channels (2i, 2i+1) of each head by `turns[..., i]`; those from 2J on stay.

    Computed in float32.
    """
    wide, rotated = x.astype(jnp.float32), 2 * turns.shape[-1]
    pairs = wide[..., :rotated].reshape(*x.shape[:-1], -1, 2)
    cos = jnp.cos(2 * jnp.pi * turns)[:, :, None]
    sin = jnp.sin(2 * jnp.pi * turns)[:, :, None]
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    turned = turned.reshape(*x.shape[:-1], rotated)
    return jnp.concatenate([turned, wide[..., rotated:]], axis=-1)


def _first_tokens(segment_ids: Int[Array, "B T"]) -> Int32[Array, "B T"]:
    """Where each token's document starts in the row."""
    batch, length = segment_ids.shape
    index = jnp.arange(length, dtype=jnp.int32)[None]
    starts = segment_starts(segment_ids, batch, length)
    return jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def _sum_since(x: Array, start: Int32[Array, "B T"] | None) -> Array:
    """Cumulative sum over time, from each token's start on."""
    total = jnp.cumsum(x, axis=1, dtype=x.dtype)
    if start is None:
        return total
    start = jnp.expand_dims(start, range(2, x.ndim))
    return total - jnp.take_along_axis(total - x, start, axis=1)


@jax.custom_jvp
def _as_turns(increment: Array, total: Int32[Array, "..."], start: Array | None) -> Array:
    """`total` in turns; to the gradient it is the sum of `increment` that it stands for."""
    del increment, start
    return total.astype(jnp.float32) / UNITS


@_as_turns.defjvp
def _as_turns_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    _, _, start = primals
    return _as_turns(*primals), _sum_since(tangents[0], start)
