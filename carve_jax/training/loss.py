"""Next-token loss in chunks of tokens: the float32 logits of a whole batch never exist at once."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from carve_jax.shapes import Array, Float, Float32, Int32
from carve_jax.sharding import axis_size

Head = Callable[[Float[Array, "B C D"]], Float32[Array, "B C vocab"]]


class LossSums(NamedTuple):
    """Sums over the counted tokens of a batch, float32; ratios are left to the reader."""

    nats: Float32[Array, ""]  # cross-entropy
    tokens: Float32[Array, ""]  # tokens whose loss counts
    bytes: Float32[Array, ""]  # bytes of text those tokens stand for; 0 when it is not text
    correct: Float32[Array, ""]  # tokens that the model ranks above all others; no ties
    penalty: Float32[Array, ""]  # z_loss · log(Z)², in the objective but in no report


NO_SUMS = LossSums(*np.zeros(len(LossSums._fields)))  # of no token


@jax.named_scope("loss")
def next_token_loss(
    head: Head,
    hidden: Float[Array, "B T D"],
    targets: Int32[Array, "B T"],
    loss_mask: Float32[Array, "B T"],
    target_bytes: Int32[Array, "B T"],
    *,
    loss_chunk: int,
    z_loss: float = 0.0,
) -> LossSums:
    """Cross-entropy of `targets` under `head(hidden)`, about `loss_chunk` tokens at a time.

    Each chunk's logits are computed, summed up and dropped; the backward pass computes them again
    (`jax.checkpoint`). Memory is loss_chunk·vocab instead of B·T·vocab. Chunks cut the time axis
    and keep all rows, so a batch that is sharded over rows stays where it is; where a mesh cuts the
    sequence, each chunk takes tokens of every shard.

    Args:
      head: maps hidden states to float32 logits; may close over traced parameters.
      loss_mask: 1 where the target counts, 0 where not.
      z_loss: weight of the squared log-partition (PaLM, arXiv 2204.02311, section 5; there 1e-4).

    Returns:
      `LossSums`; the training objective is `nats + penalty`, over `tokens`.
    """
    batch, length = targets.shape
    width = min(length, max(1, loss_chunk // batch))
    chunks = -(-length // width)

    def cut(x: Array) -> Array:
        padding = [(0, 0), (0, chunks * width - length)] + [(0, 0)] * (x.ndim - 2)
        padded, rest = jnp.pad(x, padding), x.shape[2:]
        if axis_size("sequence") > 1:
            return jnp.moveaxis(padded.reshape(batch, width, chunks, *rest), 2, 0)
        return padded.reshape(batch, chunks, width, *rest).swapaxes(0, 1)

    @jax.checkpoint
    def chunk_sums(x: Array, target: Array, mask: Array, size: Array) -> LossSums:
        logits = head(x)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        # Sums and maxima over the vocabulary, which a mesh may have cut, and no lookup in it.
        is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == target[..., None]
        picked = jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
        counted = mask > 0
        return LossSums(
            nats=jnp.sum(mask * (log_z - picked)),
            tokens=jnp.sum(mask),
            bytes=jnp.sum(jnp.where(counted, size, 0)).astype(jnp.float32),
            # Itself alone: a model that has collapsed to equal logits is right of nothing.
            correct=jnp.sum(mask * (jnp.sum(logits >= picked[..., None], axis=-1) == 1)),
            penalty=z_loss * jnp.sum(mask * jnp.square(log_z)),
        )

    def add_chunk(sums: LossSums, chunk: tuple[Array, Array, Array, Array]):
        return jax.tree.map(jnp.add, sums, chunk_sums(*chunk)), None

    zeros = LossSums(*(jnp.zeros((), jnp.float32) for _ in LossSums._fields))
    pieces = (cut(hidden), cut(targets), cut(loss_mask), cut(target_bytes))
    sums, _ = jax.lax.scan(add_chunk, zeros, pieces)
    return sums


def report(sums: LossSums) -> dict[str, float]:
    """`loss` (nats per token) and, for text, `bits_per_byte`; takes sums already on the host.

    Without any target there is no loss: it is NaN, and not the best there could be.
    """
    tokens = float(sums.tokens)
    figures = {"loss": math.nan if tokens == 0 else float(sums.nats) / tokens}
    if sums.bytes > 0:
        figures["bits_per_byte"] = float(sums.nats) / (math.log(2) * float(sums.bytes))
    return figures
