"""Packed documents of which one is broken: NaN and infinity stay in their own document.

Dense products of tiles hold zeros where two tokens belong to different documents, and 0 · NaN is
NaN. So numbers that are not finite are taken out before (selected, never multiplied), and put back
behind: from the first such number of a head on, all its outputs in that document are NaN. Finite
inputs keep every bit. One document alone needs none of this.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from carve_jax.ops.gated_delta.reference import RuleInputs, segment_starts
from carve_jax.shapes import Array, Bool, Float, Int

_State = TypeVar("_State")


def isolated(
    run: Callable[[RuleInputs, _State], tuple[Array, _State]],
    inputs: RuleInputs,
    state: _State,
    segment_ids: Int[Array, "B T"] | None,
) -> tuple[Float[Array, "B T N V"], _State]:
    """`run(inputs, state)`, in which a document that is not finite spoils no other.

    Args:
      run: gives outputs and final state.
      inputs: of the rule.
      state: a tree of arrays, those of floats being [B, N, …].
      segment_ids: of the documents; None for one in each row, which runs as it is.
    """
    if segment_ids is None:
        return run(inputs, state)
    keys, values = _broken(inputs, state, segment_ids)
    by_key = {"query", "key", "log_decay", "erase"}
    whole = RuleInputs(
        *(
            jnp.where((keys if name in by_key else values)[..., None], 0, x)
            for name, x in zip(RuleInputs._fields, inputs, strict=True)
        )
    )
    output, after = run(whole, jax.tree.map(_whole_state, state))

    def spoil(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.where(_beside(values[:, -1], leaf), jnp.nan, leaf)

    return jnp.where(values[..., None], jnp.nan, output), jax.tree.map(spoil, after)


def _broken(
    inputs: RuleInputs, state: object, segment_ids: Array
) -> tuple[Bool[Array, "B T H"], Bool[Array, "B T N"]]:
    """Tokens at or behind one, in their document, that is not finite: in what the key heads read,
    and in what the value heads do."""
    batch, length, heads = inputs.value.shape[:3]
    starts = segment_starts(segment_ids, batch, length)
    keys = _bad(inputs.query) | _bad(inputs.key) | _bad(inputs.erase)
    # A log-decay of minus infinity is a hard reset, and right.
    log_decay = inputs.log_decay
    keys |= jnp.any(jnp.isnan(log_decay) | (log_decay == jnp.inf), axis=-1)
    values = jnp.repeat(keys, heads // keys.shape[2], axis=2)
    values |= _bad(inputs.value) | _bad(inputs.write)
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            before = ~jnp.all(jnp.isfinite(leaf), axis=tuple(range(2, leaf.ndim)))
            values = values.at[:, 0].set(values[:, 0] | before)
    return _from_there_on(keys, starts), _from_there_on(values, starts)


def _bad(x: Array) -> Bool[Array, "B T H"]:
    return ~jnp.all(jnp.isfinite(x), axis=-1)


def _from_there_on(bad: Bool[Array, "B T H"], starts: Bool[Array, "B T"]) -> Bool[Array, "B T H"]:
    """Whether any token of the document so far is bad."""
    count = jnp.cumsum(bad, axis=1, dtype=jnp.int32)
    earlier = jnp.where(starts[..., None], count - bad, 0)  # of the documents before
    return count > jax.lax.cummax(earlier, axis=1)


def _whole_state(leaf: Array) -> Array:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    bad = ~jnp.all(jnp.isfinite(leaf), axis=tuple(range(2, leaf.ndim)))
    return jnp.where(_beside(bad, leaf), 0, leaf)


def _beside(flags: Bool[Array, "B N"], leaf: Array) -> Array:
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - 2))
