"""The content gate of CARVE: the outputs already written say what the erase gate may erase.

Pure functions shared by every implementation of the rule (CARVE, arXiv 2606.27229).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.shapes import Array, Bool, Float, Float32, Int32, Shaped
from pallas_kernels.blocks import content

CONTENT_NORM_EPS = 1e-6


class CarveState(NamedTuple):
    """What CARVE carries from one call to the next, for each row of the batch.

    Attributes:
      memory: the rule's state S.
      content: m of the current gate chunk, the mean output of the chunk before it; under a lag of
        2 [B, N, 2, V], m of the current gate chunk and of the next.
      partial_sum: sum of the outputs so far in the current gate chunk.
      position: number of tokens so far in the current gate chunk, 0 to gate_chunk − 1.
    """

    memory: Float32[Array, "B N K V"]
    content: Float32[Array, "B N *lag V"]
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
      lag: how many gate chunks back the outputs lie whose mean is read, 1 or 2.
    """

    down: Float[Array, "N V R"]
    up: Float[Array, "N R K"]
    chunk: int
    scale: float
    stop_gradient: bool
    norm: bool
    dtype: jnp.dtype
    lag: int = 1


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


def present_content(state: CarveState) -> Float[Array, "B N V"]:
    """The content m of the current gate chunk, whatever the lag."""
    content = state.content
    return content if content.ndim == state.partial_sum.ndim else content[..., 0, :]


def pushed(
    content: Float[Array, "B N *lag V"], mean: Float[Array, "B N V"]
) -> Float[Array, "B N *lag V"]:
    """What `CarveState.content` is once the current gate chunk is full and its mean is known."""
    if content.ndim == mean.ndim:
        return mean
    return jnp.concatenate([content[..., 1:, :], mean[..., None, :]], axis=-2)


def after_token(
    state: CarveState,
    memory: Float[Array, "B N K V"],
    output: Float[Array, "B N V"],
    chunk: int,
) -> CarveState:
    """The state after one token more, whose output and memory are these."""
    partial_sum = state.partial_sum + output
    full = state.position + 1 == chunk
    content = pushed(state.content, partial_sum / chunk)
    return CarveState(
        memory,
        jnp.where(by_row(full, content), content, state.content),
        jnp.where(by_row(full, partial_sum), 0.0, partial_sum),
        (state.position + 1) % chunk,
    )


def by_row(flags: Bool[Array, "B"], like: Shaped[Array, "B *rest"]) -> Bool[Array, "B *_"]:
    """A flag of each row of the batch, with an axis of 1 for each further axis of `like`."""
    return flags.reshape(-1, *[1] * (like.ndim - 1))


def erase_gate(
    logits: Float[Array, "*rest K"], shift: Float[Array, "*rest K"], gate: ContentGate
) -> Float[Array, "*rest K"]:
    """b = erase_scale · σ(logits + shift), rounded to the dtype of the logits as given.

    The rounding makes b what a caller of `gated_delta_rule` would hand over, so that CARVE with
    P_up = 0 is GDN-2 bit for bit in every dtype.
    """
    erase = gate.scale * jax.nn.sigmoid(logits + shift)
    return erase.astype(gate.dtype).astype(shift.dtype)
