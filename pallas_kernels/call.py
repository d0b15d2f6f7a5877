"""What a backend of the sequence kernels is asked: whether it takes a call, and the call itself."""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.tiling import Tiles

KEPT = "rule"
"""The name, to `jax.checkpoint`'s policies, of a rule's outputs and of what its backward pass reads
besides its inputs: a policy that saves it keeps the rule from being computed again."""


_Tree = TypeVar("_Tree")


def kept(tree: _Tree) -> _Tree:
    """The same arrays under the name `KEPT`."""
    return jax.tree.map(lambda x: checkpoint_name(x, KEPT), tree)


class Request(NamedTuple):
    """What is known of a call before its arrays.

    Attributes:
      dtype: of query, key and value.
      sizes: B, T, N, K and V, or None where only the machine is asked about.
      content: under a content gate.
      tiles: as the caller wants them, or None.
      decay_floor: as in `Options`.
      content_lag: how many gate chunks back the outputs lie whose mean is read.
      decay_per_head: the log-decay has one channel.
      gate_chunk, rank: L and R of the content gate, where they are known.
    """

    dtype: jnp.dtype | str
    sizes: Mapping[str, int] | None = None
    content: bool = False
    tiles: Tiles | None = None
    decay_floor: float | None = None
    content_lag: int = 1
    decay_per_head: bool = False
    gate_chunk: int | None = None
    rank: int | None = None


class Options(NamedTuple):
    """What a call asks for besides its arrays.

    Attributes:
      scale: factor of the query.
      tiles: how the work is cut; the backend's own choice if None.
      decay_floor: a promise that no log-decay is less; a high one admits a cheaper path.
    """

    scale: float
    tiles: Tiles | None = None
    decay_floor: float | None = None


class Content(NamedTuple):
    """The content gate of a call (CARVE), of gate chunks that start `stride` tokens apart.

    Attributes:
      down: P_down [N, V, R].
      up: P_up [N, R, K].
      content: of the first gate chunk [B, N, V] float32.
      partial_sum: of that chunk's outputs before the call [B, N, V] float32.
      mean: [B, chunks] float32, what makes the content of the next chunk of a chunk's sum: 1/L,
        or 0 where the next one starts a segment.
      stride: tokens from the start of one gate chunk to that of the next, a power of two or whole
        spans of 64; those past L are null tokens.
      scale: erase_scale.
      stop_gradient: no gradient through the content.
      norm_eps: added to the mean square by whose root content is divided; None for no norm.
      dtype: to which b is rounded.
    """

    down: jax.Array
    up: jax.Array
    content: jax.Array
    partial_sum: jax.Array
    mean: jax.Array
    stride: int
    scale: float
    stop_gradient: bool
    norm_eps: float | None
    dtype: jnp.dtype | str


class Result(NamedTuple):
    """What a call gives.

    Attributes:
      output: [B, T, N, V] in the dtype of value.
      memory: the state after the last token [B, N, K, V] float32.
      sums: of the outputs of each gate chunk [B, chunks, N, V] float32; None without a gate.
    """

    output: jax.Array
    memory: jax.Array
    sums: jax.Array | None = None
