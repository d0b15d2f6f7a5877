"""Text generation: prompts are read in chunks, then one token per step, in constant memory."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from carve_jax.decoding import (
    Decoding,
    Prompts,
    beside,
    check_room,
    prefill,
    prompt_rows,
    read_token,
    where_rows,
)
from carve_jax.model import LanguageModel
from carve_jax.shapes import Array, Bool, Float32, Int32

STEPS_A_CALL = 64
OnToken = Callable[[np.ndarray], None]


def generate(
    model: LanguageModel,
    params: Any,
    prompt_tokens: Prompts,
    *,
    max_new_tokens: int,
    rng: Array | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    on_token: OnToken | None = None,
    prefill_chunk: int = 2048,
) -> Int32[Array, "B new"]:
    """Continue each prompt by `max_new_tokens` tokens.

    The cache is updated in place, so that memory does not grow with what is generated (with full
    attention in the pattern, the cache has room for prompt and continuation from the start). At
    temperature 0 the tokens are those of the argmax of `model.apply` on the whole sequence.

    Args:
      model: the model.
      params: its parameters.
      prompt_tokens: an array, or a list of rows of different lengths.
      max_new_tokens: tokens to add.
      rng: key for sampling; needed when `temperature` is above 0.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: sample from the k likeliest tokens.
      top_p: sample from the fewest tokens whose probability sums to at least `top_p`.
      stop_tokens: a row that produces one of them repeats it to the end; when all rows have,
        no more steps are run.
      on_token: called after each step with its tokens [B], for streaming.
      prefill_chunk: most tokens of the prompts read in one call.

    Returns:
      The new tokens, without the prompt.

    Raises:
      ValueError: when an argument is out of its range.
      TypeError: when `prompt_tokens` or stop tokens are not integers.
    """
    rows = prompt_rows(model, prompt_tokens)
    _check_arguments(model, max_new_tokens, rng, temperature, top_k, top_p, stop_tokens)
    if max_new_tokens == 0:
        return jnp.zeros((len(rows), 0), jnp.int32)
    room = max(len(row) for row in rows) + max_new_tokens
    decoding = prefill(model, params, rows, max_length=room, chunk=prefill_chunk)
    tokens, _ = decode(
        model,
        params,
        decoding,
        max_new_tokens=max_new_tokens,
        rng=rng,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_tokens=stop_tokens,
        on_token=on_token,
    )
    return tokens


def decode(
    model: LanguageModel,
    params: Any,
    decoding: Decoding,
    *,
    max_new_tokens: int,
    rng: Array | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    on_token: OnToken | None = None,
) -> tuple[Int32[Array, "B new"], Decoding]:
    """Go on from `decoding`, which is used up (its arrays are donated); see `generate`.

    Without `on_token` many steps are run in one call. The tokens drawn depend on `rng` and on
    their count from here: to go on with a sample, give another key.

    Returns:
      The new tokens, and the rows after them. All tokens returned have been read; a row that
      stopped has read up to its stop token, once, and nothing after it.

    Raises:
      ValueError: when an argument is out of its range, or the tokens do not fit the cache.
    """
    _check_arguments(model, max_new_tokens, rng, temperature, top_k, top_p, stop_tokens)
    batch = len(decoding.position)
    check_room(model, decoding, np.full(batch, max_new_tokens), "continuation")
    advance = functools.partial(
        _advance,
        model,
        params,
        rng=jax.random.key(0) if rng is None else rng,
        stop=np.array(tuple(stop_tokens), np.int32),
        temperature=float(temperature),
        top_k=top_k,
        top_p=top_p,
    )
    tokens = np.zeros((batch, max_new_tokens), np.int32)
    nothing = beside(params, (jnp.zeros((batch,), jnp.int32), jnp.zeros((batch,), bool)))
    rows = Rows(decoding, *nothing)
    most = STEPS_A_CALL if on_token is None else 1
    made, done = 0, np.zeros((batch,), bool)
    while made < max_new_tokens and not done.all():
        count = min(most, max_new_tokens - made)
        rows, new, steps = advance(rows, first=made, count=count, some_done=bool(done.any()))
        steps, done = int(steps), np.asarray(rows.done)
        tokens[:, made : made + steps] = np.asarray(new)[:, :steps]
        made += steps
        if on_token is not None:
            on_token(tokens[:, made - 1].copy())
    tokens[:, made:] = tokens[:, made - 1 : made]
    return jnp.asarray(tokens), rows.decoding


def sample(
    logits: Float32[Array, "B vocab"],
    rng: Array,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int32[Array, " B"]:
    """One token per row: the likeliest at temperature 0, else drawn from what top_k and top_p keep.

    `top_p` counts the probabilities that are left after temperature and `top_k`.
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


class Rows(NamedTuple):
    """The rows while they are decoded: what they have read, the last token, and who stopped."""

    decoding: Decoding
    last: Int32[Array, " B"]
    done: Bool[Array, " B"]


@functools.partial(
    jax.jit,
    static_argnames=("model", "some_done", "temperature", "top_k", "top_p"),
    donate_argnames="rows",
)
def _advance(
    model: LanguageModel,
    params: Any,
    rows: Rows,
    *,
    rng: Array,
    first: Int32[Array, ""],
    count: Int32[Array, ""],
    stop: Int32[Array, " stops"],
    some_done: bool,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> tuple[Rows, Int32[Array, "B steps"], Int32[Array, ""]]:
    """Choose and read up to `count` tokens; those chosen, and how many they are.

    Stops after the step in which the last row is done. Holding back single rows copies the
    cache, so it is done by a program of its own (`some_done`), and until then the first row
    that is done ends the call.
    """

    def going_on(carry: tuple[Array, Rows, Array]) -> Array:
        index, (_, _, done), _ = carry
        return (index < count) & ~(done.all() if some_done else done.any())

    def step(carry: tuple[Array, Rows, Array]) -> tuple[Array, Rows, Array]:
        index, (decoding, last, done), tokens = carry
        key = jax.random.fold_in(rng, first + index)
        chosen = sample(decoding.logits, key, temperature=temperature, top_k=top_k, top_p=top_p)
        chosen = jnp.where(done, last, chosen)
        cache, logits = read_token(model, params, chosen, decoding.cache)
        if some_done:
            cache = where_rows(done, decoding.cache, cache)
            logits = jnp.where(done[:, None], decoding.logits, logits)
        decoding = Decoding(cache, logits, decoding.position + ~done)
        done |= (chosen[:, None] == stop[None]).any(axis=1)
        return index + 1, Rows(decoding, chosen, done), tokens.at[:, index].set(chosen)

    tokens = jnp.zeros((len(rows.last), STEPS_A_CALL), jnp.int32)
    steps, rows, tokens = jax.lax.while_loop(going_on, step, (jnp.int32(0), rows, tokens))
    return rows, tokens, steps


def _check_arguments(
    model: LanguageModel,
    max_new_tokens: int,
    rng: Array | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop_tokens: Sequence[int],
) -> None:
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens}; it must be 0 or more.")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature}; it must be 0 (greedy) or more, and finite.")
    if temperature > 0 and rng is None:
        raise ValueError(f"temperature={temperature} samples: give rng=jax.random.key(seed).")
    if top_k is not None and (not isinstance(top_k, int | np.integer) or top_k < 1):
        raise ValueError(f"top_k={top_k}; it must be a whole number of 1 or more, or None.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}; it must be above 0 and at most 1, or None.")
    vocabulary = model.config.vocab_size
    for token in stop_tokens:
        if not isinstance(token, int | np.integer):
            raise TypeError(f"stop token {token!r} is no integer; give ids of tokens.")
        if not 0 <= token < vocabulary:
            raise ValueError(
                f"stop token {token} is outside the model's vocabulary of {vocabulary}."
            )
