"""A log-decay per head: one factor for each pair of tokens, whatever the channel.

    P = (q kᵀ) ⊙ 2^D,    T = ((b⊙k) kᵀ) ⊙ 2^D,    D[r, s] = Σ_{s < j ≤ r} g_j

One product each takes the place of those of the dyadic levels. D is a product of zeros and ones
with g in bfloat16 pieces: nothing cancels, no token's distance knows a later one, and a hard reset
costs the decays beside it no digit, as in `blocks.decay`. The rule is then that of Gated DeltaNet
(arXiv 2412.06464), Mamba-2, RetNet and the like.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.blocks import decay
from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.blocks.wy import Array
from pallas_kernels.triton import ptx
from pallas_kernels.triton.plan import Plan, summed


def per_head(log_decay: Any) -> bool:
    """Whether an array or view [..., K or 1] of the log-decay holds one per head."""
    return log_decay.shape[-1] == 1


def pair_factors(plan: Plan, m: Any, log_decay: Any, later: bool = False) -> Array:
    """2^D of the token in a row and an earlier one in its column, or with `later` a later one.

    Args:
      plan: what is static.
      m: the matrices of `decay`.
      log_decay: g [span, 1].
      later: which triangle is asked for.

    Returns:
      float32 [span, span]: 1 in the rest of a tile, anything between two tiles.
    """
    token = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 0)
    other = jax.lax.broadcasted_iota(jnp.int32, (SPAN, SPAN), 1)
    wide = jnp.broadcast_to(log_decay[...].astype(jnp.float32), (SPAN, SPAN))
    inside = token <= other if later else token > other
    pieces = ptx.split(jnp.where(inside, wide, 0.0), plan.pieces)
    matrix = m[decay.TO_END if later else decay.FROM_START]
    return ptx.exp2(summed(plan, matrix, pieces))
