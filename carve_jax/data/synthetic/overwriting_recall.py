"""Recall with overwriting: the same key is written again, and its newest value is asked for.

The case that erase gates exist for: a memory that only adds answers with the sum of all the values
a key has had, and one that also decays forgets old keys with old values. The delta rule was brought
in for it (Schlag et al. 2021, arXiv 2102.11174, section 6.1, a synthetic task of this kind).

A row is `filler … | key value key value … | key key …` (`recall.py`). Keys come from the first half
of the vocabulary (0 is the filler) without repetition, values from the second half, each write's
drawn anew.
"""

from typing import ClassVar

import numpy as np

from carve_jax.data.config import DataConfig
from carve_jax.data.synthetic.recall import Rewriting
from carve_jax.data.synthetic.task import Example
from carve_jax.errors import UserError


class OverwritingRecall:
    """The task; see the module.

    Raises:
      UserError: writes and queries do not fit, or the vocabulary is too small.
    """

    settings: ClassVar[tuple[str, ...]] = ("vocab_size", "num_pairs", "num_queries", "num_writes")

    def __init__(self, config: DataConfig, sequence_length: int) -> None:
        self._layout = Rewriting(config, sequence_length)
        self.vocab_size = config.vocab_size
        if self.vocab_size // 2 <= self._layout.keys:
            raise UserError(
                f"data.vocab_size is {self.vocab_size}; half of it, less the filler, must hold "
                f"{self._layout.keys} keys: give at least {2 * self._layout.keys + 2}."
            )

    def example(self, rng: np.random.Generator) -> Example:
        """A row; the answer to a key is the value that it was last written with."""
        half = self.vocab_size // 2
        keys = 1 + rng.choice(half - 1, self._layout.keys, replace=False)
        values = rng.integers(half, self.vocab_size, (self._layout.keys, self._layout.writes))
        return self._layout.row(rng, keys, values, values[:, -1])
