"""Mamba-3's trapezoidal state update, by the gated delta rule on shifted inputs."""

from typing import NamedTuple

import jax.numpy as jnp

from carve_jax.ops.gated_delta import checks, gated_delta_rule
from carve_jax.ops.gated_delta.reference import segment_starts
from carve_jax.shapes import Array, Float, Float32, Int

_SHAPES = {
    "query": ("B", "T", "M", "N", "K"),
    "key": ("B", "T", "M", "N", "K"),
    "value": ("B", "T", "M", "N", "V"),
    "log_decay": ("B", "T", "N"),
    "timestep": ("B", "T", "N"),
    "trapezoid": ("B", "T", "N"),
}


class TrapezoidState(NamedTuple):
    """The memory before the last token's own write, and what that write is made of."""

    memory: Float32[Array, "B N K V"]
    key: Float[Array, "B M N K"]
    value: Float[Array, "B M N V"]
    weight: Float32[Array, "B N"]


def init_trapezoid_state(
    batch: int, rank: int, heads: int, key_dim: int, value_dim: int, dtype: jnp.dtype
) -> TrapezoidState:
    """The state before any token; keys and values have `dtype`."""
    return TrapezoidState(
        memory=jnp.zeros((batch, heads, key_dim, value_dim), jnp.float32),
        key=jnp.zeros((batch, rank, heads, key_dim), dtype),
        value=jnp.zeros((batch, rank, heads, value_dim), dtype),
        weight=jnp.zeros((batch, heads), jnp.float32),
    )


def trapezoidal_rule(
    query: Float[Array, "B T M N K"],
    key: Float[Array, "B T M N K"],
    value: Float[Array, "B T M N V"],
    log_decay: Float32[Array, "B T N"],
    timestep: Float32[Array, "B T N"],
    trapezoid: Float32[Array, "B T N"],
    *,
    initial_state: TrapezoidState | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    chunk_size: int = 64,
    implementation: str | None = None,
) -> tuple[Float32[Array, "B T M N V"], TrapezoidState]:
    """The exponential-trapezoidal recurrence of Mamba-3 (arXiv 2603.15569), of rank M.

    For each head, with α = exp(log_decay), Δ = timestep and λ = trapezoid:

        S_t = α_t S_{t−1} + (1−λ_t) Δ_t α_t Σ_r k_{t−1,r} v_{t−1,r}ᵀ + λ_t Δ_t Σ_r k_{t,r} v_{t,r}ᵀ
        o_{t,r} = S_tᵀ q_{t,r}

    What is left of S_t without the token's own write, S'_t = S_t − ζ_t Σ_r k_{t,r} v_{t,r}ᵀ with
    ζ = λΔ, is the gated delta rule without erase on keys and values shifted by one token:

        S'_t = α_t S'_{t−1} + c_t Σ_r k_{t−1,r} v_{t−1,r}ᵀ,     c_t = α_t (ζ_{t−1} + (1−λ_t) Δ_t)

    and o_t lacks ζ_t Σ_s (q_{t,r}·k_{t,s}) v_{t,s} alone. The rule sees a token of rank M as M
    tokens, of which the first decays; a read at the r-th lacks the writes after it, which are
    added with the others. So the state does not grow with the rank.

    Args:
      query: not scaled; of the dtype of key and value.
      key: k.
      value: v.
      log_decay: at most 0.
      timestep: Δ ≥ 0.
      trapezoid: λ in [0, 1]; 1 is Euler's rule, which looks at the present token alone.
      initial_state: what an earlier call returned, which belongs to the row's first segment;
        None for zero. Any split of a sequence into calls gives what one call gives.
      segment_ids: non-decreasing runs; a new one sees neither state nor last token.
      chunk_size: tokens of a tile of the rule, of which a token here makes M.
      implementation: as in `gated_delta_rule`.

    Returns:
      Output in float32, and the state after the last token.

    Raises:
      ValueError, TypeError, NotImplementedError: as `gated_delta_rule`.
    """
    sizes = _check(query, key, value, log_decay, timestep, trapezoid, segment_ids)
    batch, rank, heads = sizes["B"], sizes["M"], sizes["N"]
    empty = init_trapezoid_state(batch, rank, heads, sizes["K"], sizes["V"], query.dtype)
    state = empty if initial_state is None else initial_state
    checks.check_state(
        *({f"initial_state.{n}": a for n, a in s._asdict().items()} for s in (state, empty))
    )
    weight = trapezoid * timestep
    past_key, past_value = _shifted(key, state.key), _shifted(value, state.value)
    shifted = jnp.exp(log_decay) * (_shifted(weight, state.weight) + (1 - trapezoid) * timestep)
    starts = segment_starts(segment_ids, batch, sizes["T"])
    shifted = jnp.where(starts[..., None], 0, shifted)

    output, memory = gated_delta_rule(
        _subtokens(query),
        _subtokens(past_key),
        _subtokens(past_value),
        _subtokens(_first_alone(log_decay, rank)),
        jnp.zeros((batch, sizes["T"] * rank, heads, 1), log_decay.dtype),
        jnp.repeat(shifted, rank, axis=1)[..., None],
        scale=1.0,
        initial_state=state.memory,
        segment_ids=None if segment_ids is None else jnp.repeat(segment_ids, rank, axis=1),
        chunk_size=chunk_size,
        implementation=implementation,
    )
    output = output.reshape(value.shape).astype(jnp.float32)
    output += _reads(query, key, value, weight, later_alone=False)
    if rank > 1:
        output += _reads(query, past_key, past_value, shifted, later_alone=True)
    return output, TrapezoidState(memory, key[:, -1], value[:, -1], weight[:, -1])


def _reads(
    query: Array, key: Array, value: Array, weight: Array, *, later_alone: bool
) -> Float32[Array, "B T M N V"]:
    """What the queries of a token read of its writes: of all of them, or of those after theirs.

    Sums are written out: products of M × M are too small for matrix units, and these fuse.
    """
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    ranks = range(query.shape[2])
    score = [jnp.sum(query * key[:, :, s : s + 1], axis=-1) * weight[:, :, None] for s in ranks]
    output = jnp.zeros(value.shape, jnp.float32)
    for s in ranks:
        if later_alone:
            before = jnp.arange(query.shape[2]) < s
            score[s] = jnp.where(before[None, None, :, None], score[s], 0)
        output += score[s][..., None] * value[:, :, s : s + 1]
    return output


def _shifted(x: Float[Array, "B T *rest"], first: Float[Array, "B *rest"]) -> Array:
    """`x` one token later, behind `first`."""
    return jnp.concatenate([first[:, None], x[:, :-1]], axis=1)


def _subtokens(x: Float[Array, "B T M N X"]) -> Float[Array, "B T*M N X"]:
    """A token of rank M as M tokens."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def _first_alone(x: Float[Array, "B T N"], rank: int) -> Float[Array, "B T M N 1"]:
    """`x` for the first of each token's M, and 0 for the others."""
    return jnp.pad(x[:, :, None, :, None], ((0, 0), (0, 0), (0, rank - 1), (0, 0), (0, 0)))


def _check(
    query: Array,
    key: Array,
    value: Array,
    log_decay: Array,
    timestep: Array,
    trapezoid: Array,
    segment_ids: Array | None,
) -> dict[str, int]:
    arrays = {"query": query, "key": key, "value": value, "log_decay": log_decay}
    arrays |= {"timestep": timestep, "trapezoid": trapezoid}
    sizes = checks.check_arrays(arrays, _SHAPES)
    checks.check_dtypes(arrays)
    checks.check_sizes(sizes | {"H": sizes["N"]})
    checks.check_segments(segment_ids, sizes)
    return sizes
