"""The rule token by token in plain JAX, float32: what the self-test compares kernels with.

No kernel, no tile and no GPU compiler: it is meant to run on JAX's CPU device. carve_jax has its
own, of every option; this one is here since the kernels import jax alone.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.blocks.content import erase_shift
from pallas_kernels.call import Content, Result

Array = jax.Array


def recurrence(
    inputs: Sequence[Array], memory: Array, scale: float, content: Content | None = None
) -> Result:
    """GDN-2 (arXiv 2605.22791, eq. 9-10) or CARVE (arXiv 2606.27229), one token after another.

    Args:
      inputs, memory, content: as `pallas_kernels.backends.Backend.run` takes them, with as many key
        heads as value heads.
      scale: factor of the query.

    Returns:
      As the kernels', the output in float32.
    """
    tokens = tuple(jnp.swapaxes(x.astype(jnp.float32), 0, 1) for x in inputs)

    def step(memory: Array, token: tuple) -> tuple[Array, Array]:
        query, key, value, log_decay, erase, write = token
        memory = jnp.exp(log_decay)[..., None] * memory
        erased = _read(memory, erase * key)
        memory = memory + key[..., None] * (write * value - erased)[..., None, :]
        return memory, _read(memory, scale * query)

    if content is None:
        memory, output = jax.lax.scan(step, memory, tokens)
        return Result(jnp.swapaxes(output, 0, 1), memory)

    def gate_chunk(carry: tuple, chunk: tuple) -> tuple[tuple, tuple]:
        memory, seen, before = carry
        tokens, mean = chunk
        shift = _shift(content, seen)
        erase = _rounded(content.scale * jax.nn.sigmoid(tokens[4] + shift[None]), content.dtype)
        memory, output = jax.lax.scan(step, memory, (*tokens[:4], erase, tokens[5]))
        total = before + output.sum(axis=0)
        return (memory, mean[:, None, None] * total, jnp.zeros_like(before)), (output, total)

    chunks = tuple(x.reshape(-1, content.stride, *x.shape[1:]) for x in tokens)
    carry = (memory, content.content, content.partial_sum)
    (memory, _, _), (output, sums) = jax.lax.scan(gate_chunk, carry, (chunks, content.mean.T))
    output = output.reshape(-1, *output.shape[2:])
    return Result(jnp.swapaxes(output, 0, 1), memory, jnp.swapaxes(sums, 0, 1))


def _read(memory: Array, channels: Array) -> Array:
    """Sᵀ x of every head."""
    return jnp.einsum("bnkv,bnk->bnv", memory, channels, precision="highest")


def _shift(gate: Content, content: Array) -> Array:
    found = erase_shift(
        content[:, :, None],
        gate.down,
        gate.up,
        stop_gradient=gate.stop_gradient,
        norm_eps=gate.norm_eps,
    )
    return found[:, :, 0]


def _rounded(x: Array, dtype: jnp.dtype | str) -> Array:
    """Rounds to the precision of a dtype; the gradient is not rounded."""
    return x + jax.lax.stop_gradient(x.astype(dtype).astype(jnp.float32) - x)
