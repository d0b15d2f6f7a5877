"""A state update that removes along one key and writes along another, by the gated delta rule."""

import jax.numpy as jnp

from carve_jax.ops.gated_delta import checks, gated_delta_rule
from carve_jax.shapes import Array, Float, Float32, Int

LEAST_STRENGTH = 1e-6  # its reciprocal is an erase gate

_SHAPES = {
    "query": ("B", "T", "H", "K"),
    "removal": ("B", "T", "H", "K"),
    "key": ("B", "T", "H", "K"),
    "value": ("B", "T", "N", "V"),
    "log_decay": ("B", "T", "H", "K"),
    "strength": ("B", "T", "H", "K"),
}


def removal_rule(
    query: Float[Array, "B T H K"],
    removal: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T N V"],
    log_decay: Float32[Array, "B T H K"],
    strength: Float32[Array, "B T H K"],
    *,
    initial_state: Float32[Array, "B N K V"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    chunk_size: int = 64,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """The generalised delta rule of RWKV-7 (arXiv 2503.14456, evolution of the WKV state).

    For each head, with w = exp(log_decay), κ = removal and a = strength:

        S_t = Diag(w_t) S_{t−1} − (a_t ⊙ κ_t)ᵀ (κ_t S_{t−1}) + k_tᵀ v_t        o_t = q_t S_t

    It is two steps of the gated delta rule. The first decays, and erases along a ⊙ κ by the gate
    1 / (w ⊙ a), so that what is found is κ S_{t−1} itself; it writes nothing. The second writes
    along k, and neither decays nor erases. The rule sees a token as two, and reads at the second.

    Args:
      query: not scaled; of the dtype of removal, key and value.
      removal: κ, the key whose value is removed.
      key: k, the key that is written.
      value: v; its heads may be a multiple of the others.
      log_decay: at most 0 and not far below: 1/w is formed.
      strength: a in [0, 1], raised to 1e-6 where it is below.
      initial_state: what an earlier call returned, which belongs to the row's first segment;
        None for zero. Any split of a sequence into calls gives what one call gives.
      segment_ids: non-decreasing runs; a new one does not see the state.
      chunk_size: tokens of a tile of the rule, of which a token here makes two.
      implementation: as in `gated_delta_rule`.

    Returns:
      Output in the dtype of value, and the state after the last token.

    Raises:
      ValueError, TypeError, NotImplementedError: as `gated_delta_rule`.
    """
    arrays = {"query": query, "removal": removal, "key": key, "value": value}
    arrays |= {"log_decay": log_decay, "strength": strength}
    sizes = checks.check_arrays(arrays, _SHAPES)
    strength = jnp.maximum(strength, LEAST_STRENGTH)
    along = (removal.astype(jnp.float32) * strength).astype(removal.dtype)
    erase = jnp.exp(-log_decay) / strength
    nothing = jnp.zeros_like(log_decay)
    write = jnp.broadcast_to(
        jnp.arange(2, dtype=jnp.float32)[None, :, None, None], (1, 2, sizes["N"], 1)
    )
    output, state = gated_delta_rule(
        _interleaved(query, query),
        _interleaved(along, key),
        _interleaved(value, value),
        _interleaved(log_decay, nothing),
        _interleaved(erase, nothing),
        jnp.tile(write, (sizes["B"], sizes["T"], 1, 1)),
        scale=1.0,
        initial_state=initial_state,
        segment_ids=None if segment_ids is None else jnp.repeat(segment_ids, 2, axis=1),
        chunk_size=chunk_size,
        implementation=implementation,
    )
    return output[:, 1::2], state


def _interleaved(
    first: Float[Array, "B T heads channels"], second: Float[Array, "B T heads channels"]
) -> Array:
    """Each token's `first` and then its `second`, as two tokens."""
    both = jnp.stack([first, second], axis=2)
    return both.reshape(both.shape[0], -1, *both.shape[3:])
