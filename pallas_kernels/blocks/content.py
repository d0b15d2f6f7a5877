"""What content does to the erase logits (CARVE, arXiv 2606.27229), over whole arrays, in XLA.

The scans find the same for one head's content in registers (`triton/scan.py`).
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def erase_shift(
    contents: Array,
    down: Array,
    up: Array,
    *,
    stop_gradient: bool = False,
    norm_eps: float | None = None,
    channels: int | None = None,
) -> Array:
    """Shifts of the erase logits, m P_down P_up, of several gate chunks.

    Args:
      contents: m [..., N, chunks, V], float32 or float64.
      down: P_down [N, V, R]; up: P_up [N, R, K]. Cast to the dtype of the contents.
      stop_gradient: no gradient through the contents.
      norm_eps: divide m by the root of its mean square over V plus this; None for m as it is.
      channels: V before padding with zeros, over which that mean is taken.

    Returns:
      [..., N, chunks, K] in the dtype of the contents.
    """
    if stop_gradient:
        contents = jax.lax.stop_gradient(contents)
    if norm_eps is not None:
        width = contents.shape[-1] if channels is None else channels
        mean_square = jnp.sum(jnp.square(contents), axis=-1, keepdims=True) / width
        contents = contents * jax.lax.rsqrt(mean_square + norm_eps)
    down, up = down.astype(contents.dtype), up.astype(contents.dtype)
    low_rank = jnp.einsum("...njv,nvr->...njr", contents, down, precision="highest")
    return jnp.einsum("...njr,nrk->...njk", low_rank, up, precision="highest")
