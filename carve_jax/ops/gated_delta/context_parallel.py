"""The rule on a sequence that is sharded over devices; called inside `jax.shard_map`.

Each device holds a shard of T tokens of every row, in order along a named axis. The plain rule is
affine in its first state, so the shards run side by side and their maps are composed. CARVE's
content gate is not affine: there the state is handed along the axis, and the devices work on
different rows at a time, as in a pipeline.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from carve_jax.ops.content_gate import CarveState
from carve_jax.ops.gated_delta.api import carve_rule, gated_delta_rule, zero_state
from carve_jax.shapes import Array, Float, Float32, Int

Rule = Callable[..., tuple[Array, Any]]


def gated_delta_rule_over(
    axis: str,
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T N V"],
    log_decay: Float[Array, "B T H Kg"],
    erase: Float[Array, "B T H Ke"],
    write: Float[Array, "B T N Vg"],
    *,
    initial_state: Float32[Array, "B N K V"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    **options: Any,
) -> tuple[Float[Array, "B T N V"], Float32[Array, "B N K V"]]:
    """`gated_delta_rule` over all shards along `axis`, exactly.

    Over its shard the state becomes S' = A S + B, and the output is O + Q̃ S, whatever S is. One
    call of the rule finds all four: its values are widened by K channels that write nothing and
    start from the identity. The maps of all devices are gathered (K·(K + V) floats per head), and
    each composes those before its own. Costs about 1 + K / V of the rule alone, and nothing waits.

    Args:
      axis: name of the mesh axis that cuts T; all arrays are this device's shard.
      initial_state: before the whole sequence, the same on every device.
      segment_ids: as in `gated_delta_rule`, this shard of the whole row's.
      options: of `gated_delta_rule`, such as scale and implementation.

    Returns:
      The output of this shard, and the state after the whole sequence (the same on every device).

    Raises:
      What `gated_delta_rule` raises.
    """
    batch, length, heads, width = value.shape
    channels = key.shape[-1]
    none = jnp.zeros((batch, length, heads, channels), value.dtype)
    wide_write = jnp.broadcast_to(write, (*write.shape[:3], width))
    memory = jnp.zeros((batch, heads, channels, width), jnp.float32)
    identity = jnp.broadcast_to(jnp.eye(channels)[None, None], (*memory.shape[:3], channels))
    output, state = gated_delta_rule(
        query,
        key,
        jnp.concatenate([value, none], axis=-1),
        log_decay,
        erase,
        jnp.concatenate([wide_write, none.astype(write.dtype)], axis=-1),
        initial_state=jnp.concatenate([memory, identity.astype(jnp.float32)], axis=-1),
        segment_ids=segment_ids,
        **options,
    )
    own, q_decayed = output[..., :width], output[..., width:].astype(jnp.float32)
    added, carried = state[..., :width], state[..., width:]
    starts = memory if initial_state is None else initial_state
    before, after = _compose(axis, carried, added, starts, segment_ids)
    past = jnp.einsum("btnk,bnkv->btnv", q_decayed, before, precision="highest")
    return (own + past).astype(value.dtype), after


def _compose(
    axis: str, carried: Array, added: Array, start: Array, segment_ids: Array | None
) -> tuple[Array, Array]:
    """The state before this device's shard, and after the last."""
    index, count = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
    maps = jax.lax.all_gather((carried, added), axis)
    goes_on = jnp.ones((count, start.shape[0]), bool)
    if segment_ids is not None:
        first, last = jax.lax.all_gather((segment_ids[:, 0], segment_ids[:, -1]), axis)
        goes_on = goes_on.at[1:].set(first[1:] == last[:-1])

    def step(state: Array, shard: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        carried, added, goes_on = shard
        state = jnp.where(goes_on[:, None, None, None], state, 0)
        after = jnp.einsum("bnij,bnjv->bniv", carried, state, precision="highest") + added
        return after, state

    after, before = jax.lax.scan(step, start, (*maps, goes_on))
    return before[index], after


def carve_rule_over(
    axis: str,
    *arrays: Array,
    micro_batches: int,
    initial_state: CarveState | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    **options: Any,
) -> tuple[Float[Array, "B T N V"], CarveState]:
    """`carve_rule` over all shards along `axis`, exactly, as a pipeline.

    Rows are taken `micro_batches` at a time of equal size. Device i works on micro-batch s − i in
    step s and hands its last state to device i + 1: micro_batches + devices − 1 steps, of which
    `bubble` is idle. The backward pass is the same pipeline the other way.

    Args:
      axis: name of the mesh axis that cuts T.
      arrays: the first eight arguments of `carve_rule`: this device's shard of six, the last two
        replicated.
      micro_batches: a divisor of B.
      initial_state: before the whole sequence, the same on every device; None for zero.
      segment_ids: as in `carve_rule`, this shard.
      options: of `carve_rule`.

    Returns:
      The output of this shard, and the state after the whole sequence (the same on every device).

    Raises:
      ValueError: when the micro-batches do not divide the rows; and what `carve_rule` raises.
    """
    query, value = arrays[0], arrays[2]
    batch = query.shape[0]
    if micro_batches < 1 or batch % micro_batches:
        raise ValueError(f"micro_batches={micro_batches} does not divide the {batch} rows.")
    rows = batch // micro_batches
    if initial_state is None:
        sizes = {"B": batch, "N": value.shape[2], "K": query.shape[3], "V": value.shape[3]}
        initial_state = zero_state(sizes, query.dtype, options.get("content_lag", 1))
    index, count = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
    micro = jax.tree.map(
        lambda x: x.reshape(micro_batches, rows, *x.shape[1:]),
        (arrays[:6], segment_ids, initial_state, _new_documents(axis, segment_ids)),
    )
    forward = [(i, i + 1) for i in range(count - 1)]

    def step(handed: CarveState, number: Array) -> tuple[CarveState, tuple[Array, CarveState]]:
        place = jnp.clip(number - index, 0, micro_batches - 1)
        mine, segments, start, new = jax.tree.map(lambda x: x[place], micro)
        state = jax.tree.map(lambda a, b: jnp.where(index == 0, a, b), start, handed)
        if new is not None:
            state = jax.tree.map(lambda x: jnp.where(_rows(new, x), 0, x), state)
        output, state = carve_rule(
            *mine, *arrays[6:], initial_state=state, segment_ids=segments, **options
        )
        return jax.lax.ppermute(state, axis, forward), (output, state)

    empty = jax.tree.map(lambda x: jnp.zeros_like(x[0]), micro[2])
    steps = jnp.arange(micro_batches + count - 1)
    _, (outputs, states) = jax.lax.scan(step, empty, steps)
    kept = jax.lax.dynamic_slice_in_dim(outputs, index, micro_batches, axis=0)
    last = jax.tree.map(lambda x: x[count - 1 :], states)  # of the last device, which all are told
    last = jax.tree.map(lambda x: jax.lax.all_gather(x, axis)[-1], last)
    return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), (kept, last))


def bubble(micro_batches: int, devices: int) -> float:
    """Share of a pipeline's time in which a device is idle."""
    return (devices - 1) / (micro_batches + devices - 1)


def _new_documents(axis: str, segment_ids: Array | None) -> Array | None:
    """Rows whose shard here begins with another document than the shard before ended with."""
    if segment_ids is None:
        return None
    index, last = jax.lax.axis_index(axis), jax.lax.all_gather(segment_ids[:, -1], axis)
    return (index > 0) & (segment_ids[:, 0] != last[jnp.maximum(index - 1, 0)])


def _rows(which: Array, like: Array) -> Array:
    return which.reshape(-1, *[1] * (like.ndim - 1))
