"""Multi-query associative recall, with the settings of Zoology (Arora et al. 2023, 2312.04927).

An example shows key-value pairs, then asks for some of the keys again amid random tokens; the
target at each asked key is its value. Keys come from the first half of the vocabulary (0 is never
a key), values from the second, without repetition within an example. The place of a query follows
a power law, so that most come soon after the pairs.
"""

from typing import ClassVar

import numpy as np

from carve_jax.data.config import DataConfig
from carve_jax.data.synthetic.recall import check_queries
from carve_jax.data.synthetic.task import NO_TARGET, Example
from carve_jax.errors import UserError


class MQAR:
    """The task; see the module.

    Raises:
      UserError: the pairs or the queries do not fit, or the vocabulary is too small.
    """

    settings: ClassVar[tuple[str, ...]] = ("vocab_size", "num_pairs", "num_queries", "power_a")

    def __init__(self, config: DataConfig, sequence_length: int) -> None:
        self._num_pairs = config.num_pairs
        self._num_queries = config.num_queries or config.num_pairs
        self.vocab_size = config.vocab_size
        self._sequence_length = sequence_length
        self._check()
        # A query takes every second place behind the pairs.
        places = (sequence_length - 2 * self._num_pairs) // 2
        weights = np.arange(1, places + 1) ** (config.power_a - 1.0)
        self._probabilities = weights / weights.sum()

    def _check(self) -> None:
        pairs, queries, length = self._num_pairs, self._num_queries, self._sequence_length
        check_queries(pairs, queries)
        if 2 * (pairs + queries) > length:
            raise UserError(
                f"{pairs} pairs and {queries} queries need a sequence_length of at least "
                f"{2 * (pairs + queries)}, but it is {length}."
            )
        if self.vocab_size <= length or self.vocab_size // 2 <= pairs:
            raise UserError(
                f"data.vocab_size is {self.vocab_size}; associative recall over {length} tokens "
                f"and {pairs} pairs needs more than {max(length, 2 * pairs + 1)} (Zoology: 8192)."
            )

    def example(self, rng: np.random.Generator) -> Example:
        """Pairs, then random tokens with the asked keys among them."""
        half = self.vocab_size // 2
        keys = 1 + rng.choice(half - 1, self._num_pairs, replace=False)
        values = half + rng.choice(self.vocab_size - half, self._num_pairs, replace=False)
        tokens = rng.integers(self.vocab_size, size=self._sequence_length, dtype=np.int32)
        tokens[0 : 2 * self._num_pairs : 2] = keys
        tokens[1 : 2 * self._num_pairs : 2] = values

        places = rng.choice(
            len(self._probabilities), self._num_queries, replace=False, p=self._probabilities
        )
        positions = 2 * (self._num_pairs + places)
        tokens[positions] = keys[: self._num_queries]
        targets = np.full_like(tokens, NO_TARGET)
        targets[positions] = values[: self._num_queries]
        return Example(tokens, targets)
