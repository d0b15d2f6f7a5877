"""What a synthetic task is, and its examples by index as batches."""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from carve_jax.data.batches import BatchIterator, Block, CountedOrder, HeldOut
from carve_jax.data.config import DataConfig
from carve_jax.data.packing import Batch
from carve_jax.errors import UserError

# First word of the random key: one stream for each split, and held-out examples that are the same
# for every training seed.
_EVAL_STREAM, _TRAIN_STREAM = 0, 1

NO_TARGET = -1
FILLER = 0
"""The token that means nothing, in the tasks that have one."""


class Example(NamedTuple):
    """One row.

    Attributes:
      tokens: int32 [T].
      targets: int32 [T]: the answer at each place where one is asked for, elsewhere NO_TARGET.
    """

    tokens: np.ndarray
    targets: np.ndarray


class Task(Protocol):
    """A rule that makes examples.

    Attributes:
      settings: the fields of `DataConfig` that it reads.
      vocab_size: every token and target is below it.
    """

    settings: ClassVar[tuple[str, ...]]
    vocab_size: int

    def example(self, rng: np.random.Generator) -> Example:
        """A random example, all of whose randomness is drawn from `rng`."""
        ...


MakeTask = Callable[[DataConfig, int], Task]
"""A task of (settings, tokens of an example). Raises UserError for settings that do not fit."""


class Examples:
    """Examples by index, each a function of `key` and the index alone.

    Args:
      task: makes them.
      key: the random stream.
    """

    def __init__(self, task: Task, key: tuple[int, ...]) -> None:
        self._task = task
        self._key = key

    def __getitem__(self, index: int) -> Batch:
        tokens, targets = self._task.example(np.random.default_rng((*self._key, index)))
        asked = targets != NO_TARGET
        return {
            "tokens": tokens,
            "targets": np.where(asked, targets, 0).astype(np.int32),
            "segment_ids": np.zeros_like(tokens),
            "loss_mask": asked.astype(np.float32),
        }

    def batch(self, indices: Sequence[int | None]) -> Batch:
        """The examples of these indices; None is a row of zeros, without targets."""
        rows = [self[0 if index is None else index] for index in indices]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        missing = [index is None for index in indices]
        for values in batch.values():
            values[missing] = 0
        return batch


def train_batches(task: Task, block: Block, seed: int) -> BatchIterator[int]:
    """Endless batches of fresh examples."""
    return BatchIterator(CountedOrder(), Examples(task, (_TRAIN_STREAM, seed)).batch, block)


def eval_batches(task: Task, block: Block, count: int) -> HeldOut[int]:
    """The fixed held-out examples; rows missing in the last batch have no targets."""
    if count < 1:
        raise UserError(f"data.eval_examples is {count}; give at least one.")
    return HeldOut(lambda: iter(range(count)), Examples(task, (_EVAL_STREAM,)).batch, block)
