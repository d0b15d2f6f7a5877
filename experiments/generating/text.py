"""Text in and out: prompts and stops as tokens, continuations as they are printed."""

from collections.abc import Sequence

import numpy as np

from carve_jax.data import Tokenizer
from carve_jax.errors import UserError
from carve_jax.shapes import Int32


class TextStream:
    """Prints tokens as text while they come; waits where a character is not complete yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: list[int] = []

    def add(self, token: int) -> None:
        """Takes the next token."""
        self._waiting.append(token)
        text = self._tokenizer.decode(self._waiting)
        # A character has at most four bytes: longer than that, it is not one to wait for.
        if not text.endswith("\ufffd") or len(self._waiting) > 4:
            self.close()

    def close(self) -> None:
        """Prints what is left."""
        print(self._tokenizer.decode(self._waiting), end="", flush=True)
        self._waiting.clear()


def encode(tokenizer: Tokenizer, flag: str, text: str) -> Int32[np.ndarray, " tokens"]:
    """Ids of a flag's text; UserError where it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--{flag}={text!r} is not UTF-8: convert it") from error
    return tokenizer.encode(text)


def stop_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[int, ...]:
    """The separator and the token of each text; UserError for a text that is not one token."""
    found = [tokenizer.separator]
    for text in texts:
        ids = [int(token) for token in encode(tokenizer, "stop", text)]
        if len(ids) != 1:
            parts = " + ".join(repr(tokenizer.decode([token])) for token in ids) or "none"
            raise UserError(
                f"--stop={text!r} is {len(ids)} tokens of this run's tokenizer ({parts}): give a "
                "text that is one"
            )
        found += ids
    return tuple(found)


def print_rows(
    prompts: Sequence[str], new: np.ndarray, stops: Sequence[int], tokenizer: Tokenizer
) -> None:
    """Each prompt with its continuation up to the stop, under a line with its number."""
    for index, row in enumerate(new):
        ended = np.flatnonzero(np.isin(row, stops))
        kept = row[: ended[0]] if len(ended) else row
        print(f"--- {index + 1}")
        print((prompts[index] if prompts else "") + tokenizer.decode(kept))
