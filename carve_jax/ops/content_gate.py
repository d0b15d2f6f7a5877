"""The content gate of CARVE: the outputs already written say what the erase gate may erase.

Pure functions shared by every implementation of the rule (CARVE, arXiv 2606.27229).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.shapes import Array, Float, Float32, Int32
from pallas_kernels.blocks import content

CONTENT_NORM_EPS = 1e-6


class CarveState(NamedTuple):
    """What CARVE carries from one call to the next, for each row of the batch.

    Attributes:
      memory: the rule's state S.
      content: m of the current gate chunk, the mean output of the chunk before it.
      partial_sum: sum of the outputs so far in the current gate chunk.
      position: number of tokens so far in the current gate chunk, 0 to gate_chunk − 1.
    """

    memory: Float32[Array, "B N K V"]
    content: Float32[Array, "B N V"]
    partial_sum: Float32[Array, "B N V"]
    position: Int32[Array, "B"]


class ContentGate(NamedTuple):
    """How the erase gate reads content; static but for the two projections.

    Attributes:
      down: P_down, one projection per head.
      up: P_up, one projection per head; zero at initialisation.
      chunk: L, tokens of a gate chunk.
      scale: erase_scale, the largest erase (2 admits negative eigenvalues).
      stop_gradient: cut the gradient through the content (ablation).
      norm: divide the content by its root mean square over V.
      dtype: of the erase logits, to which b is rounded.
    """

    down: Float[Array, "N V R"]
    up: Float[Array, "N R K"]
    chunk: int
    scale: float
    stop_gradient: bool
    norm: bool
    dtype: jnp.dtype


def erase_shift(
    contents: Float[Array, "*B N chunks V"], gate: ContentGate
) -> Float[Array, "*B N chunks K"]:
    """Shifts of the erase logits, m P_down P_up, of several gate chunks."""
    return content.erase_shift(
        contents,
        gate.down,
        gate.up,
        stop_gradient=gate.stop_gradient,
        norm_eps=CONTENT_NORM_EPS if gate.norm else None,
    )


def erase_gate(
    logits: Float[Array, "*rest K"], shift: Float[Array, "*rest K"], gate: ContentGate
) -> Float[Array, "*rest K"]:
    """b = erase_scale · σ(logits + shift), rounded to the dtype of the logits as given.

    The rounding makes b what a caller of `gated_delta_rule` would hand over, so that CARVE with
    P_up = 0 is GDN-2 bit for bit in every dtype.
    """
    erase = gate.scale * jax.nn.sigmoid(logits + shift)
    return erase.astype(gate.dtype).astype(shift.dtype)
