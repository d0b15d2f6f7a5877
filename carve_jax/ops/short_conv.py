"""Short depthwise causal convolution with a streaming cache."""

import jax
import jax.numpy as jnp

from carve_jax.shapes import Array, Float, Int32


@jax.named_scope("short_conv")
def short_conv(
    x: Float[Array, "B T D"],
    kernel: Float[Array, "W D"],
    *,
    cache: Float[Array, "B W-1 D"] | None = None,
    segment_ids: Int32[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B W-1 D"]]:
    """Depthwise causal convolution without bias: `y_t = Σ_j kernel[W-1-j] · x_{t-j}`.

    The last row of `kernel` weighs the present token (PyTorch's order). Tokens before the
    start of a document count as zero. Sums are float32 at least; `y` has x's dtype.

    Args:
      x: the inputs.
      kernel: one filter per channel.
      cache: the W-1 inputs before `x`, which belong to the row's first document; None for
        none. Any split of a sequence into calls gives what one call gives.
      segment_ids: non-decreasing document numbers; the convolution sees one document alone.

    Returns:
      `y` and the cache for the next call (inputs of the row's last document, else zero).

    Raises:
      ValueError: when a shape does not fit.
    """
    _check_shapes(x, kernel, cache, segment_ids)
    width = kernel.shape[0]
    batch, length, channels = x.shape
    if cache is None:
        cache = jnp.zeros((batch, width - 1, channels), x.dtype)
    padded = jnp.concatenate([cache.astype(x.dtype), x], axis=1)
    sum_dtype = jnp.promote_types(x.dtype, jnp.float32)

    documents = None
    if segment_ids is not None:
        before = jnp.broadcast_to(segment_ids[:, :1], (batch, width - 1))
        documents = jnp.concatenate([before, segment_ids], axis=1)

    # W shifted multiply-adds, which XLA fuses into one pass; its grouped convolution is many
    # times slower on a CPU.
    y = jnp.zeros(x.shape, sum_dtype)
    for tap in range(width):
        shifted = padded[:, tap : tap + length]
        if documents is not None:
            same = documents[:, tap : tap + length] == documents[:, width - 1 :]
            shifted = jnp.where(same[..., None], shifted, 0)
        y += shifted.astype(sum_dtype) * kernel[tap].astype(sum_dtype)[None, None]

    tail = padded[:, length:]
    if documents is not None:
        same = documents[:, length:] == documents[:, -1:]
        tail = jnp.where(same[..., None], tail, 0)
    return y.astype(x.dtype), tail


def _check_shapes(x: Array, kernel: Array, cache: Array | None, segment_ids: Array | None) -> None:
    if x.ndim != 3:
        raise ValueError(f"short_conv: x has shape {x.shape}; expected [B, T, D].")
    if kernel.ndim != 2 or kernel.shape[0] < 1 or kernel.shape[1] != x.shape[2]:
        raise ValueError(
            f"short_conv: kernel has shape {kernel.shape}; expected [W, {x.shape[2]}], W >= 1."
        )
    history = (x.shape[0], kernel.shape[0] - 1, x.shape[2])
    if cache is not None and cache.shape != history:
        raise ValueError(f"short_conv: cache has shape {cache.shape}; expected {history}.")
    if segment_ids is not None and segment_ids.shape != x.shape[:2]:
        raise ValueError(
            f"short_conv: segment_ids has shape {segment_ids.shape}; expected {x.shape[:2]}."
        )
