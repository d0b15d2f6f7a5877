"""Sequences cut into groups of tiles and back: [B, T, H, X] to [tiles, B, N, C, X]."""

from typing import Any

import jax
import jax.numpy as jnp

from carve_jax.shapes import Array, Float, Float32, Shaped

SMALLEST_TILE, LARGEST_TILE = 16, 256
# Elements of one [C, K] operand over a group of tiles. On CPU 2^16 (256 KB) was the fastest of 2^15
# to 2^19: 34 ms forward and backward at B1 T2048 H4 K64 float32, against 50 ms ungrouped.
GROUP_ELEMENTS = {"cpu": 1 << 16}
GROUP_ELEMENTS_ELSEWHERE = 1 << 24


def tile_size(chunk_size: int, length: int) -> int:
    """The largest power of two up to `chunk_size`, within limits, and no longer than needed."""
    wanted = 1 << (min(chunk_size, LARGEST_TILE).bit_length() - 1)
    enough = 1 << (length - 1).bit_length()
    return max(SMALLEST_TILE, min(wanted, enough))


def group_size(query: Float[Array, "B T H K"], value: Float[Array, "B T N V"], tile: int) -> int:
    """Tiles to compute at once: on a CPU as many as its caches hold, elsewhere as many as keep
    the device busy; groups are made about even."""
    batch, length, heads = value.shape[:3]
    elements = batch * heads * tile * max(query.shape[3], value.shape[3])
    budget = GROUP_ELEMENTS.get(jax.default_backend(), GROUP_ELEMENTS_ELSEWHERE)
    tiles = -(-length // tile)
    groups = -(-tiles // max(1, budget // elements))
    return -(-tiles // groups)


def pad_time(tree: Any, tokens: int) -> Any:
    """[B, T, …] with zeros (False) up to whole groups of `tokens` tokens."""

    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, -x.shape[1] % tokens)] + [(0, 0)] * (x.ndim - 2))

    return jax.tree.map(pad, tree)


def take_group(tree: Any, index: Array, tokens: int) -> Any:
    """One group of padded [B, T, …]: a slice, where scanned inputs would first be copied."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, index * tokens, tokens, axis=1), tree
    )


def from_groups(
    grouped: Shaped[Array, "groups B tokens *rest"], length: int
) -> Shaped[Array, "B T *rest"]:
    """Rows of `length` tokens, of the groups in which they were worked on."""
    x = grouped.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def cut_time(x: Shaped[Array, "B T"], tile: int) -> Shaped[Array, "tiles B C"]:
    """Tiles of a row; a short last tile is filled with zeros (False)."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % tile)))
    return x.reshape(x.shape[0], -1, tile).transpose(1, 0, 2)


def cut(x: Float[Array, "B T H X"], tile: int, heads: int) -> Float32[Array, "tiles B N C X"]:
    """Float32 tiles of a row, grouped heads repeated to `heads` = N."""
    x = x.astype(jnp.float32)
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % tile), (0, 0), (0, 0)))
    x = x.reshape(x.shape[0], -1, tile, *x.shape[2:]).transpose(1, 0, 3, 2, 4)
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def uncut(
    tiled: Float32[Array, "tiles B N C _"], like: Float[Array, "B T H X"]
) -> Float[Array, "B T H X"]:
    """Transpose of `cut`, in the shape and dtype of `like`: sums over repeated heads and, where
    `like` has one channel, over the channels it was broadcast to."""
    batch, length, heads, channels = like.shape
    count, _, repeated, tile, _ = tiled.shape
    if channels == 1:
        tiled = tiled.sum(axis=-1, keepdims=True)
    if heads != repeated:
        tiled = tiled.reshape(count, batch, heads, repeated // heads, tile, channels).sum(axis=3)
    x = tiled.transpose(1, 0, 3, 2, 4).reshape(batch, count * tile, heads, channels)
    return x[:, :length].astype(like.dtype)
