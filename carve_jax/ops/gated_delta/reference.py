"""The rule token by token: the oracle that every other implementation is compared with.

Runs in float64 when its inputs are float64, in float32 otherwise. One scan serves GDN-2
(arXiv 2605.22791, eq. 9-10), CARVE (arXiv 2606.27229) and the value-axis erase ablation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.ops.content_gate import (
    CarveState,
    ContentGate,
    after_token,
    by_row,
    erase_gate,
    erase_shift,
    present_content,
)
from carve_jax.shapes import Array, Float, Int

RESTART = -1e5  # exp gives exactly 0 in float32: a new segment as a decay that keeps nothing


class RuleInputs(NamedTuple):
    """What the rule reads at each token; `erase` holds logits under a content gate."""

    query: Float[Array, "B T H K"]
    key: Float[Array, "B T H K"]
    value: Float[Array, "B T N V"]
    log_decay: Float[Array, "B T H Kg"]
    erase: Float[Array, "B T H Ke"]
    write: Float[Array, "B T N Vg"]


def rule_step(
    memory: Float[Array, "B N K V"],
    query: Float[Array, "B N K"],
    key: Float[Array, "B N K"],
    value: Float[Array, "B N V"],
    log_decay: Float[Array, "B N Kg"],
    erase: Float[Array, "B N Ke"],
    write: Float[Array, "B N Vg"],
    value_erase: Float[Array, "B N V"] | None = None,
) -> tuple[Float[Array, "B N K V"], Float[Array, "B N V"]]:
    """One token: decay, then one asymmetric rank-one edit, then the read (query already scaled).

    With `value_erase` c, the residual is w⊙v − c⊙(S̄ᵀ(b⊙k)): the ablation that no single WY solve
    can express.
    """
    memory = jnp.exp(log_decay)[..., None] * memory
    erased = jnp.einsum("bnkv,bnk->bnv", memory, erase * key, precision="highest")
    if value_erase is not None:
        erased = value_erase * erased
    memory = memory + key[..., None] * (write * value - erased)[..., None, :]
    return memory, jnp.einsum("bnkv,bnk->bnv", memory, query, precision="highest")


def segment_starts(segment_ids: Int[Array, "B T"] | None, batch: int, length: int) -> Array:
    """True where a row's token begins a new segment; never at the row's first token."""
    if segment_ids is None:
        return jnp.zeros((batch, length), bool)
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.concatenate([jnp.zeros((batch, 1), bool), changes], axis=1)


def recurrent(
    inputs: RuleInputs,
    state: CarveState,
    segment_ids: Int[Array, "B T"] | None,
    scale: float,
    gate: ContentGate | None = None,
    value_erase: Float[Array, "B T N V"] | None = None,
) -> tuple[Float[Array, "B T N V"], CarveState]:
    """Scan the rule over time.

    Args:
      inputs: the sequences; any float dtype, all promoted to the state's dtype.
      state: the state before the first token; without a content gate only `memory` is read.
      segment_ids: non-decreasing runs; the state restarts at each new one.
      scale: factor of the query.
      gate: the content gate, or None for the plain rule.
      value_erase: value-axis erase mask, the ablation (see `rule_step`).

    Returns:
      The outputs in the dtype of the values, and the state after the last token.
    """
    batch, length, value_heads = inputs.value.shape[:3]
    group = value_heads // inputs.query.shape[2]
    dtype = state.memory.dtype
    starts = segment_starts(segment_ids, batch, length)

    def to_value_heads(x: Array) -> Array:
        return jnp.repeat(x, group, axis=1) if x.shape[1] != value_heads else x

    def step(carry: CarveState, token: tuple) -> tuple[CarveState, Array]:
        (query, key, value, log_decay, erase, write), start, mask = token
        carry = CarveState(*(jnp.where(by_row(~start, x), x, 0) for x in carry))
        query, key, log_decay, erase = map(to_value_heads, (query, key, log_decay, erase))
        if gate is not None:
            shift = erase_shift(present_content(carry)[:, :, None], gate)[:, :, 0]
            erase = erase_gate(erase, shift, gate)
        memory, output = rule_step(
            carry.memory, scale * query, key, value, log_decay, erase, write, mask
        )
        if gate is None:
            return carry._replace(memory=memory), output
        return after_token(carry, memory, output, gate.chunk), output

    def time_major(x: Array) -> Array:
        return jnp.moveaxis(x.astype(dtype), 1, 0)

    mask = None if value_erase is None else time_major(value_erase)
    tokens = (tuple(map(time_major, inputs)), starts.T, mask)
    state, outputs = jax.lax.scan(step, state, tokens)
    return jnp.moveaxis(outputs, 0, 1).astype(inputs.value.dtype), state
