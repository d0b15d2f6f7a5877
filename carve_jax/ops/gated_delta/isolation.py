"""Packed documents of which one is broken: NaN and infinity stay in their own document.

Dense products of tiles hold zeros where two tokens belong to different documents, and 0 · NaN is
NaN. So numbers that are not finite are taken out before (selected, never multiplied), and put back
behind: from the first such number of a head on, all its outputs in that document are NaN. Finite
inputs keep every bit. One document alone needs none of this.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from carve_jax.ops.gated_delta.reference import RuleInputs, segment_starts
from carve_jax.shapes import Array, Bool, Float, Int
from pallas_kernels.call import kept

_State = TypeVar("_State")


def isolated(
    run: Callable[[RuleInputs, _State], tuple[Array, _State]],
    inputs: RuleInputs,
    state: _State,
    segment_ids: Int[Array, "B T"] | None,
    *,
    logits: bool = False,
) -> tuple[Float[Array, "B T N V"], _State]:
    """`run(inputs, state)`, in which a document that is not finite spoils no other.

    That holds of outputs, state and gradients. Of the broken document, outputs before the first bad
    number and their gradients are right; behind it outputs are NaN and take no gradient.

    Without `segment_ids` it adds nothing to the program. With them it adds a comparison, a select
    and a reduction by "and" for each element of the inputs and of the state, a select for each
    element of the outputs and of the state, and one running maximum over [B, T, N] int32. Compilers
    fuse the elementwise part with what makes the inputs and reads the outputs; where they cannot,
    each is read and written once more. For gradients it keeps one byte per token and head, and adds
    a select for each element of the outputs.

    Args:
      run: gives outputs and final state.
      inputs: of the rule.
      state: a tree of arrays, those of floats being [B, N, …].
      segment_ids: of the documents; None for one in each row, which runs as it is.
      logits: `erase` holds logits, of which infinite ones are gates as any other.
    """
    if segment_ids is None:
        return run(inputs, state)
    # A log-decay of minus infinity is a hard reset, and right.
    tests = {"log_decay": _below_infinity}
    if logits:
        tests["erase"] = _is_number
    fine = {name: tests.get(name, jnp.isfinite) for name in RuleInputs._fields}
    with jax.named_scope("isolated"):
        broken = kept(_broken(inputs, state, segment_ids, fine))
        whole = RuleInputs(*(_whole(fine[n], x) for n, x in inputs._asdict().items()))
        state = jax.tree.map(partial(_of_floats, partial(_whole, jnp.isfinite)), state)
    output, after = run(whole, state)
    spoil = partial(_of_floats, lambda leaf: _spoil(leaf, broken[:, -1]))
    with jax.named_scope("isolated"):
        return _spoil(output, broken), jax.tree.map(spoil, after)


_Test = Callable[[Array], Array]


def _below_infinity(x: Array) -> Array:
    return x < jnp.inf


def _is_number(x: Array) -> Array:
    return ~jnp.isnan(x)


def _of_floats(change: Callable[[Array], Array], leaf: Array) -> Array:
    return change(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _broken(
    inputs: RuleInputs, state: object, segment_ids: Array, fine: Mapping[str, _Test]
) -> Bool[Array, "B T N"]:
    """Where a head has read a number that is not fine, in this document, by this token."""
    batch, length, heads = inputs.value.shape[:3]

    def bad(*names: str) -> Array:
        whole = (jnp.all(fine[name](getattr(inputs, name)), axis=-1) for name in names)
        return ~jnp.stack(list(whole)).all(0)

    by_key = bad("query", "key", "log_decay", "erase")
    broken = bad("value", "write") | jnp.repeat(by_key, heads // by_key.shape[2], axis=2)
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            before = ~jnp.all(jnp.isfinite(leaf), axis=tuple(range(2, leaf.ndim)))
            broken = broken.at[:, 0].set(broken[:, 0] | before)
    token = jnp.arange(length, dtype=jnp.int32)[None]
    starts = segment_starts(segment_ids, batch, length)
    first = jax.lax.cummax(jnp.where(starts, token, 0), axis=1)  # of the token's document
    last = jax.lax.cummax(jnp.where(broken, token[..., None], -1), axis=1)
    return last >= first[..., None]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _whole(fine: _Test, x: Array) -> Array:
    """`x` with zeros where it is not fine.

    Gradients pass as they come, so that no mask is kept: no output that counts reads a zero put
    there, and so they are zero there.
    """
    return jnp.where(fine(x), x, 0)


_whole.defvjp(lambda fine, x: (_whole(fine, x), None), lambda fine, _, gradient: (gradient,))


@jax.custom_vjp
def _spoil(x: Array, broken: Bool[Array, "..."]) -> Array:
    """`x` with NaN where the leading axes say broken; no gradient comes from there."""
    return jnp.where(_beside(broken, x), jnp.nan, x)


def _unspoiled(broken: Array, gradient: Array) -> tuple[Array, None]:
    return jnp.where(_beside(broken, gradient), 0, gradient), None


_spoil.defvjp(lambda x, broken: (_spoil(x, broken), broken), _unspoiled)


def _beside(flags: Bool[Array, "..."], x: Array) -> Array:
    return flags.reshape(flags.shape + (1,) * (x.ndim - flags.ndim))
