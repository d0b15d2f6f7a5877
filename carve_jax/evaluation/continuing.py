"""Continuations of texts, up to stops that are texts of any length."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from carve_jax.decoding import prefill
from carve_jax.evaluation.batching import batches, power_of_two
from carve_jax.evaluation.reading import Tokens
from carve_jax.evaluation.scoring import check_length
from carve_jax.generate import decode
from carve_jax.model import LanguageModel

TOKENS_A_LOOK = 16  # written between one look for stops and the next


def continue_texts(
    model: LanguageModel,
    params: Any,
    prompts: Sequence[Tokens],
    to_text: Callable[[Sequence[int]], str],
    *,
    max_new_tokens: int,
    stops: Sequence[str] = (),
    end: int,
    batch_size: int = 32,
    call_tokens: int = 16384,
    max_length: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    progress: bool = False,
    on_text: Callable[[int, str], None] = lambda number, text: None,
) -> list[str]:
    """The text that follows each prompt, up to a stop (left out), or to its longest.

    A stop may be many tokens, or begin inside one: what was written is turned into text and
    searched, every 16 tokens. Batches hold prompts of like lengths.

    Args:
      prompts: each of at least one token.
      to_text: turns tokens into text.
      max_new_tokens: most tokens of a continuation.
      stops: texts that end it; of several, the first to come.
      end: the token that ends a document, and with it the continuation.
      max_length: most tokens of prompt and continuation; None for no limit.
      temperature, top_k, top_p: as `generate` takes them.
      seed: of the draws.
      on_text: called with the number of a prompt and its text, as soon as there is one.

    Raises:
      UserError: a prompt that leaves no room for its continuation.
    """
    for prompt in prompts:
        check_length(model.config, len(prompt) + max_new_tokens, max_length)
    texts = [""] * len(prompts)
    lengths = [len(prompt) for prompt in prompts]
    rng = jax.random.key(seed)
    write = functools.partial(decode, temperature=temperature, top_k=top_k, top_p=top_p)
    with tqdm(total=len(prompts), desc="writing", unit="prompt", disable=not progress) as bar:
        groups = batches(lengths, most_rows=batch_size, most_tokens=call_tokens)
        for turn, (numbers, count, length) in enumerate(groups):
            rows = [prompts[number] for number in numbers]
            # Room in few sizes, for full attention's caches have its shape.
            room = length + power_of_two(max_new_tokens)
            decoding = prefill(
                model,
                params,
                rows + rows[:1] * (count - len(rows)),
                max_length=room,
                chunk=call_tokens,
                pad_to=length,
            )
            written = np.zeros((count, 0), np.int32)
            ended = [False] * len(rows)
            while written.shape[1] < max_new_tokens and not all(ended):
                key = jax.random.fold_in(jax.random.fold_in(rng, turn), written.shape[1])
                more = min(TOKENS_A_LOOK, max_new_tokens - written.shape[1])
                new, decoding = write(model, params, decoding, max_new_tokens=more, rng=key)
                written = np.concatenate([written, np.asarray(new)], axis=1)
                for index, number in enumerate(numbers):
                    if not ended[index]:
                        found = cut(written[index], to_text, stops, end)
                        texts[number], ended[index] = found
            for number in numbers:
                on_text(number, texts[number])
            bar.update(len(numbers))
    return texts


def cut(
    tokens: Tokens, to_text: Callable[[Sequence[int]], str], stops: Sequence[str], end: int
) -> tuple[str, bool]:
    """The text of the tokens up to the first stop, and whether there was one."""
    ends = np.flatnonzero(tokens == end)
    text = to_text(tokens[: ends[0]].tolist() if len(ends) else tokens.tolist())
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(places, default=None)], bool(places) or len(ends) > 0
