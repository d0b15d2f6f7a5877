"""Multi-query associative recall, with the settings of Zoology (Arora et al. 2023, 2312.04927).

An example shows key-value pairs, then asks for some of the keys again amid random tokens; the
target at each asked key is its value. Keys come from the first half of the vocabulary (0 is never
a key), values from the second, without repetition within an example. The place of a query follows
a power law, so that most come soon after the pairs.
"""

from collections.abc import Sequence

import numpy as np

from carve_jax.errors import UserError
from carve_jax.training.data.batches import BatchIterator, Block, CountedOrder, HeldOut
from carve_jax.training.data.config import DataConfig
from carve_jax.training.data.packing import Batch

# First word of the random key: one stream for each split, and held-out examples that are the same
# for every training seed.
_EVAL_STREAM, _TRAIN_STREAM = 0, 1


class MQARExamples:
    """Examples by index, each a function of `key` and the index alone.

    Args:
      config: num_pairs, num_queries, power_a and vocab_size are used.
      sequence_length: tokens of an example.
      key: the random stream.

    Raises:
      UserError: the pairs or the queries do not fit, or the vocabulary is too small.
    """

    def __init__(self, config: DataConfig, sequence_length: int, key: tuple[int, ...]) -> None:
        self._num_pairs = config.num_pairs
        self._num_queries = config.num_queries or config.num_pairs
        self._vocab_size = config.vocab_size
        self._sequence_length = sequence_length
        self._key = key
        self._check()
        # A query takes every second place behind the pairs.
        places = (sequence_length - 2 * self._num_pairs) // 2
        weights = np.arange(1, places + 1) ** (config.power_a - 1.0)
        self._probabilities = weights / weights.sum()

    def _check(self) -> None:
        pairs, queries, length = self._num_pairs, self._num_queries, self._sequence_length
        if pairs < 1 or not 1 <= queries <= pairs:
            raise UserError(
                f"data.num_pairs is {pairs} and data.num_queries {queries}; give at least one "
                "pair, and from one query (0 means all) to as many as there are pairs."
            )
        if 2 * (pairs + queries) > length:
            raise UserError(
                f"{pairs} pairs and {queries} queries need a sequence_length of at least "
                f"{2 * (pairs + queries)}, but it is {length}."
            )
        if self._vocab_size <= length or self._vocab_size // 2 <= pairs:
            raise UserError(
                f"data.vocab_size is {self._vocab_size}; associative recall over {length} tokens "
                f"and {pairs} pairs needs more than {max(length, 2 * pairs + 1)} (Zoology: 8192)."
            )

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng((*self._key, index))
        half = self._vocab_size // 2
        keys = 1 + rng.choice(half - 1, self._num_pairs, replace=False)
        values = half + rng.choice(self._vocab_size - half, self._num_pairs, replace=False)
        tokens = rng.integers(self._vocab_size, size=self._sequence_length, dtype=np.int32)
        tokens[0 : 2 * self._num_pairs : 2] = keys
        tokens[1 : 2 * self._num_pairs : 2] = values

        places = rng.choice(
            len(self._probabilities), self._num_queries, replace=False, p=self._probabilities
        )
        positions = 2 * (self._num_pairs + places)
        tokens[positions] = keys[: self._num_queries]
        targets = np.zeros_like(tokens)
        targets[positions] = values[: self._num_queries]
        loss_mask = np.zeros(self._sequence_length, np.float32)
        loss_mask[positions] = 1.0
        return {
            "tokens": tokens,
            "targets": targets,
            "segment_ids": np.zeros_like(tokens),
            "loss_mask": loss_mask,
        }

    def batch(self, indices: Sequence[int | None]) -> Batch:
        """The examples of these indices; None is a row of zeros, without targets."""
        rows = [self[0 if index is None else index] for index in indices]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        missing = [index is None for index in indices]
        for values in batch.values():
            values[missing] = 0
        return batch


def train_batches(
    config: DataConfig, block: Block, sequence_length: int, seed: int
) -> BatchIterator[int]:
    """Endless batches of fresh examples."""
    examples = MQARExamples(config, sequence_length, (_TRAIN_STREAM, seed))
    return BatchIterator(CountedOrder(), examples.batch, block)


def eval_batches(config: DataConfig, block: Block, sequence_length: int) -> HeldOut[int]:
    """The fixed held-out examples; rows missing in the last batch have no targets."""
    if config.eval_examples < 1:
        raise UserError(f"data.eval_examples is {config.eval_examples}; give at least one.")
    examples = MQARExamples(config, sequence_length, (_EVAL_STREAM,))
    return HeldOut(lambda: iter(range(config.eval_examples)), examples.batch, block)
