"""Selective copying (Mamba, Gu and Dao 2023, arXiv 2312.00752, section 4.1.1).

Data tokens lie scattered amid noise; then as many markers ask for them, in their order. Which
tokens to keep depends on what they are, not on where they stand, so a time-invariant layer fails.

Tokens: 0 the noise, 1 the marker, the rest of the vocabulary data. The paper has 16 data tokens of
16 kinds in 4096.
"""

from typing import ClassVar

import numpy as np

from carve_jax.data.config import DataConfig
from carve_jax.data.synthetic.task import FILLER, NO_TARGET, Example
from carve_jax.errors import UserError

MARKER, FIRST_DATA = 1, 2


class SelectiveCopying:
    """The task; see the module.

    Raises:
      UserError: data and markers do not fit, or the vocabulary has no data tokens.
    """

    settings: ClassVar[tuple[str, ...]] = ("vocab_size", "num_queries")

    def __init__(self, config: DataConfig, sequence_length: int) -> None:
        self._copied, self._sequence_length = config.num_queries, sequence_length
        self.vocab_size = config.vocab_size
        if self._copied < 1:
            raise UserError(
                f"data.num_queries is {self._copied}; selective copying needs the number of tokens "
                "to copy, at least one."
            )
        if 2 * self._copied > sequence_length:
            raise UserError(
                f"{self._copied} tokens to copy and as many markers need a sequence_length of at "
                f"least {2 * self._copied}, but it is {sequence_length}."
            )
        if self.vocab_size < FIRST_DATA + 2:
            raise UserError(
                f"data.vocab_size is {self.vocab_size}; noise, marker and at least two kinds of "
                f"data need {FIRST_DATA + 2} or more."
            )

    def example(self, rng: np.random.Generator) -> Example:
        """Noise with data in it, then the markers."""
        start = self._sequence_length - self._copied
        data = rng.integers(FIRST_DATA, self.vocab_size, self._copied)
        tokens = np.full(self._sequence_length, FILLER, np.int32)
        tokens[np.sort(rng.choice(start, self._copied, replace=False))] = data
        tokens[start:] = MARKER
        targets = np.full_like(tokens, NO_TARGET)
        targets[start:] = data
        return Example(tokens, targets)
