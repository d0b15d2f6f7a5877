"""What the tasks share that write keys several times and ask for them at the end.

Such a row is `filler … filler | key value key value … | key key … key`: every key is written
`num_writes` times, in a random order, and the last `num_queries` tokens each ask for another key.
"""

import numpy as np

from carve_jax.data.config import DataConfig
from carve_jax.data.synthetic.task import FILLER, NO_TARGET, Example
from carve_jax.errors import UserError


def check_queries(pairs: int, queries: int) -> None:
    """Raises UserError unless 1 <= queries <= pairs."""
    if pairs < 1 or not 1 <= queries <= pairs:
        raise UserError(
            f"data.num_pairs is {pairs} and data.num_queries {queries}; give at least one "
            "pair, and from one query (0 means all) to as many as there are pairs."
        )


class Rewriting:
    """The row's layout, whose contents a task fills in.

    Args:
      config: num_pairs, num_queries and num_writes are read.
      sequence_length: tokens of a row, T.
      least_filler: tokens that must be left in front of the first write.

    Attributes:
      keys: different keys, N.
      writes: of each key, R.
      start: of the first write.

    Raises:
      UserError: they do not fit.
    """

    def __init__(self, config: DataConfig, sequence_length: int, least_filler: int = 0) -> None:
        self.keys, self.writes = config.num_pairs, config.num_writes
        self._queries = config.num_queries or config.num_pairs
        self._sequence_length = sequence_length
        check_queries(self.keys, self._queries)
        if self.writes < 1:
            raise UserError(f"data.num_writes is {self.writes}; write each key at least once.")
        needed = 2 * self.keys * self.writes + self._queries
        self.start = sequence_length - needed
        if self.start < least_filler:
            raise UserError(
                f"{self.keys} keys written {self.writes} times each and {self._queries} queries "
                f"need a sequence_length of at least {needed + least_filler}, but it is "
                f"{sequence_length}."
            )

    def row(
        self, rng: np.random.Generator, keys: np.ndarray, values: np.ndarray, answers: np.ndarray
    ) -> Example:
        """The writes of all keys in a random order, then the queries.

        Args:
          keys: tokens [N].
          values: tokens [N, R] in the order in which each key's are written.
          answers: tokens [N].
        """
        owners = rng.permutation(np.repeat(np.arange(self.keys), self.writes))
        # Of writes sorted by their owner, which keeps their order, each owner's are a row.
        in_order = np.empty_like(owners)
        in_order[np.argsort(owners, kind="stable")] = values.ravel()
        tokens = np.full(self._sequence_length, FILLER, np.int32)
        end = self._sequence_length - self._queries
        tokens[self.start : end : 2] = keys[owners]
        tokens[self.start + 1 : end : 2] = in_order
        asked = rng.choice(self.keys, self._queries, replace=False)
        tokens[end:] = keys[asked]
        targets = np.full_like(tokens, NO_TARGET)
        targets[end:] = answers[asked]
        return Example(tokens, targets)
