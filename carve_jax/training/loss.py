"""Next-token loss in chunks of tokens: the float32 logits of a whole batch never exist at once."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

from carve_jax.shapes import Array, Float, Float32, Int32
from carve_jax.sharding import axis_size

Head = Callable[[Float[Array, "B C D"]], Float32[Array, "B C vocab"]]
_Weights = tuple[Array, ...]


class LossSums(NamedTuple):
    """Sums over the counted tokens of a batch, float32; ratios are left to the reader."""

    nats: Float32[Array, ""]  # cross-entropy
    tokens: Float32[Array, ""]  # tokens whose loss counts
    bytes: Float32[Array, ""]  # bytes of text those tokens stand for; 0 when it is not text
    correct: Float32[Array, ""]  # tokens that the model ranks above all others; no ties
    penalty: Float32[Array, ""]  # z_loss · log(Z)², in the objective but in no report


NO_SUMS = LossSums(*np.zeros(len(LossSums._fields)))  # of no token


@jax.named_scope("loss")
def next_token_loss(
    head: Head,
    hidden: Float[Array, "B T D"],
    targets: Int32[Array, "B T"],
    loss_mask: Float32[Array, "B T"],
    target_bytes: Int32[Array, "B T"],
    *,
    loss_chunk: int,
    z_loss: float = 0.0,
) -> LossSums:
    """Cross-entropy of `targets` under `head(hidden)`, about `loss_chunk` tokens at a time.

    Each chunk's logits are computed, summed up and dropped. Where a gradient is wanted, it is
    formed while they are there, so that the backward pass computes no logits again; it keeps that
    of `hidden` and of what `head` reads. Memory is loss_chunk·vocab instead of B·T·vocab. Chunks
    cut the time axis and keep all rows, so a batch that is sharded over rows stays where it is;
    where a mesh cuts the sequence, each chunk takes tokens of every shard.

    Args:
      head: maps hidden states to float32 logits; may close over traced parameters of floats.
      loss_mask: 1 where the target counts, 0 where not; takes no gradient.
      z_loss: weight of the squared log-partition (PaLM, arXiv 2204.02311, section 5; there 1e-4);
        a number, which is not traced.

    Returns:
      `LossSums`; the training objective is `nats + penalty`, over `tokens`. With a `z_loss` the
      gradient is of their sum alone, or of any multiple of it; of the two with other weights it is
      NaN. Forward mode (`jax.jvp`) is not supported.

    Raises:
      ValueError: with a `z_loss`, when JAX sees that one of the two is differentiated without the
        other.
    """
    batch, length = targets.shape
    width = min(length, max(1, loss_chunk // batch))
    chunks = -(-length // width)

    def cut(x: Array) -> Array:
        padding = [(0, 0), (0, chunks * width - length)] + [(0, 0)] * (x.ndim - 2)
        padded, rest = jnp.pad(x, padding), x.shape[2:]
        if axis_size("sequence") > 1:
            return jnp.moveaxis(padded.reshape(batch, width, chunks, *rest), 2, 0)
        return padded.reshape(batch, chunks, width, *rest).swapaxes(0, 1)

    counted = _Counted(cut(targets), cut(jax.lax.stop_gradient(loss_mask)), cut(target_bytes))
    states = cut(hidden)
    logits_of, weights = jax.closure_convert(head, states[0])
    return _summed(logits_of, z_loss, tuple(weights), states, counted)


class _Counted(NamedTuple):
    """What is known of each token, in chunks [chunks, B, C]."""

    target: Int32[Array, "*chunks B C"]
    mask: Float32[Array, "*chunks B C"]
    size: Int32[Array, "*chunks B C"]


def _chunk_sums(logits: Float32[Array, "B C vocab"], of: _Counted, z_loss: float) -> LossSums:
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # Sums and maxima over the vocabulary, which a mesh may have cut, and no lookup in it.
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == of.target[..., None]
    picked = jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
    return LossSums(
        nats=jnp.sum(of.mask * (log_z - picked)),
        tokens=jnp.sum(of.mask),
        bytes=jnp.sum(jnp.where(of.mask > 0, of.size, 0)).astype(jnp.float32),
        # Itself alone: a model that has collapsed to equal logits is right of nothing.
        correct=jnp.sum(of.mask * (jnp.sum(logits >= picked[..., None], axis=-1) == 1)),
        penalty=z_loss * jnp.sum(of.mask * jnp.square(log_z)),
    )


def _zeros() -> LossSums:
    return LossSums(*(jnp.zeros((), jnp.float32) for _ in LossSums._fields))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(
    logits_of: Callable[..., Array], z_loss: float, weights: _Weights, states: Array, of: _Counted
) -> LossSums:
    """Sums over all chunks.

    Args:
      logits_of: of the hidden states of a chunk and the weights that the head reads.
    """

    def add(sums: LossSums, chunk: tuple[Array, _Counted]) -> tuple[LossSums, None]:
        x, counted = chunk
        new = _chunk_sums(logits_of(x, *weights), counted, z_loss)
        return jax.tree.map(jnp.add, sums, new), None

    return jax.lax.scan(add, _zeros(), (states, of))[0]


def _summed_and_gradient(
    logits_of: Callable[..., Array], z_loss: float, weights: Any, states: Any, of: Any
) -> tuple[LossSums, tuple[_Weights, Array]]:
    """The sums, and the gradient of nats + penalty while the logits are there."""
    weights, states, of = custom_vjp_primal_tree_values((weights, states, of))

    def objective(x: Array, weights: _Weights, counted: _Counted) -> tuple[Array, LossSums]:
        sums = _chunk_sums(logits_of(x, *weights), counted, z_loss)
        return sums.nats + sums.penalty, sums

    gradient = jax.grad(objective, argnums=(0, 1), has_aux=True)

    def add(carry: Any, chunk: tuple[Array, _Counted]) -> tuple[Any, Array]:
        x, counted = chunk
        (of_x, of_weights), new = gradient(x, weights, counted)
        return jax.tree.map(jnp.add, carry, (new, of_weights)), of_x

    start = _zeros(), jax.tree.map(jnp.zeros_like, weights)
    (sums, of_weights), of_states = jax.lax.scan(add, start, (states, of))
    return sums, (of_weights, of_states)


def _scaled_gradient(
    logits_of: Callable[..., Array],
    z_loss: float,
    gradient: tuple[_Weights, Array],
    cotangent: LossSums,
) -> tuple[_Weights, Array, None]:
    del logits_of
    scale, other = cotangent.nats, cotangent.penalty
    if z_loss and isinstance(scale, SymbolicZero) != isinstance(other, SymbolicZero):
        raise ValueError(
            "next_token_loss: with a z_loss the gradient is formed of nats and penalty together; "
            "differentiate their sum."
        )
    if isinstance(scale, SymbolicZero):
        return *jax.tree.map(jnp.zeros_like, gradient), None
    if z_loss:  # other weights would be answered wrongly
        scale = jnp.where(scale == other, scale, jnp.nan)
    return *jax.tree.map(lambda x: (scale * x).astype(x.dtype), gradient), None


_summed.defvjp(_summed_and_gradient, _scaled_gradient, symbolic_zeros=True)


def report(sums: LossSums) -> dict[str, float]:
    """`loss` (nats per token) and, for text, `bits_per_byte`; takes sums already on the host.

    Without any target there is no loss: it is NaN, and not the best there could be.
    """
    tokens = float(sums.tokens)
    figures = {"loss": math.nan if tokens == 0 else float(sums.nats) / tokens}
    if sums.bytes > 0:
        figures["bits_per_byte"] = float(sums.nats) / (math.log(2) * float(sums.bytes))
    return figures
