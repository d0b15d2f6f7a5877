"""Text generation: one call over the prompt, then one jitted step a token."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from carve_jax.mixers.base import Cache
from carve_jax.model import LanguageModel
from carve_jax.shapes import Array, Bool, Float32, Int32


def generate(
    model: LanguageModel,
    params: Any,
    prompt_tokens: Int32[Array, "B T"],
    *,
    max_new_tokens: int,
    rng: Array | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    on_token: Callable[[np.ndarray], None] | None = None,
) -> Int32[Array, "B new"]:
    """Continue each prompt by ``max_new_tokens`` tokens.

    The cache is updated in place, so that memory does not grow with what is generated (with full
    attention in the pattern, the cache has room for prompt and continuation from the start). At
    temperature 0 the tokens are those of the argmax of ``model.apply`` on the whole sequence.

    Args:
        model: the model.
        params: its parameters.
        prompt_tokens: prompts of one length.
        max_new_tokens: tokens to add.
        rng: key for sampling; needed when ``temperature`` is above 0.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample from the k likeliest tokens.
        top_p: sample from the fewest tokens whose probability sums to at least ``top_p``.
        stop_tokens: a row that produces one of them repeats it to the end; when all rows have,
            no more steps are run.
        on_token: called after each step with its tokens [B], for streaming.

    Returns:
        The new tokens, without the prompt.

    Raises:
        ValueError: when an argument is out of its range.
        TypeError: when ``prompt_tokens`` are not integers.
    """
    prompt = jnp.asarray(prompt_tokens)
    _check_arguments(model, prompt, max_new_tokens, rng, temperature, top_k, top_p)
    batch, length = prompt.shape
    if max_new_tokens == 0:
        return jnp.zeros((batch, 0), jnp.int32)
    rng = jax.random.key(0) if rng is None else rng
    choose = functools.partial(
        _step,
        model,
        params,
        rng=rng,
        stop=jnp.array(tuple(stop_tokens), jnp.int32),
        temperature=float(temperature),
        top_k=top_k,
        top_p=top_p,
    )
    cache = model.init_cache(batch, length + max_new_tokens)
    done = jnp.zeros((batch,), bool)
    tokens: list[Array] = []
    read = prompt
    for index in range(max_new_tokens):
        token, done, cache = choose(read, cache, done=done, index=index)
        tokens.append(token)
        if on_token is not None:
            on_token(np.asarray(token))
        if stop_tokens and bool(done.all()):
            break
        read = token[:, None]
    tokens += tokens[-1:] * (max_new_tokens - len(tokens))
    return jnp.stack(tokens, axis=1)


def sample(
    logits: Float32[Array, "B vocab"],
    rng: Array,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int32[Array, " B"]:
    """One token a row: the likeliest at temperature 0, else drawn from what top_k and top_p keep.

    ``top_p`` counts the probabilities that are left after temperature and ``top_k``.
    """
    if temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None and top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(rng, logits, axis=-1).astype(jnp.int32)


@functools.partial(
    jax.jit,
    static_argnames=("model", "temperature", "top_k", "top_p"),
    donate_argnames=("cache",),
)
def _step(
    model: LanguageModel,
    params: Any,
    tokens: Int32[Array, "B T"],
    cache: Cache,
    *,
    rng: Array,
    index: int,
    done: Bool[Array, " B"],
    stop: Int32[Array, " stops"],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> tuple[Int32[Array, " B"], Bool[Array, " B"], Cache]:
    """Read ``tokens`` and choose the next; rows that are done repeat their last token."""
    variables = {"params": params}
    hidden, cache = model.apply(variables, tokens, cache, method="hidden")
    logits = jnp.asarray(model.apply(variables, hidden[:, -1], method="head"))
    key = jax.random.fold_in(rng, index)
    chosen = sample(logits, key, temperature=temperature, top_k=top_k, top_p=top_p)
    chosen = jnp.where(done, tokens[:, -1], chosen)
    return chosen, done | (chosen[:, None] == stop[None]).any(axis=1), cache


def _check_arguments(
    model: LanguageModel,
    prompt: Array,
    max_new_tokens: int,
    rng: Array | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    if prompt.ndim != 2 or prompt.shape[0] < 1 or prompt.shape[1] < 1:
        raise ValueError(
            f"prompt_tokens have shape {prompt.shape}; expected [B, T] with at least one token."
        )
    if not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise TypeError(f"prompt_tokens are {prompt.dtype}; expected integers.")
    vocabulary = model.config.vocab_size
    if not bool(((prompt >= 0) & (prompt < vocabulary)).all()):
        raise ValueError(f"prompt_tokens go beyond the model's vocabulary of {vocabulary}.")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens}; it must be 0 or more.")
    if temperature < 0:
        raise ValueError(f"temperature={temperature}; it must be 0 (greedy) or more.")
    if temperature > 0 and rng is None:
        raise ValueError(f"temperature={temperature} samples: give rng=jax.random.key(seed).")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}; it must be 1 or more, or None.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}; it must be above 0 and at most 1, or None.")
