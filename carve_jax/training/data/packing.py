"""Documents to packed batches.

A document of n tokens x is cut into pieces of at most T targets. The piece of the targets
x[a:b] reads (separator, x[a], …, x[b-2]): its inputs are its targets moved right by one, so every
token of the document is predicted exactly once and no position is spent on the overlap. Pieces are
padded to a multiple of the segment alignment and packed into rows of T by Grain; each piece is a
segment of its row.

On the way through Grain a piece is one array, its targets plus one, so that the zeros with which
Grain and we pad mean "no target".
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Int64

from carve_jax.errors import UserError
from carve_jax.shapes import Int32

Batch = dict[str, Any]
# Rows that are filled side by side: more leave less padding, and cost a longer way back on resume.
_OPEN_ROWS = 64
# The tokens are in memory or in mapped files: reading them needs no threads.
READ_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


class TokenDocuments(NamedTuple):
    """Tokens of many documents end to end, without separators; `offsets` says where each starts."""

    tokens: np.ndarray
    offsets: Int64[np.ndarray, " documents+1"]

    @classmethod
    def concatenate(cls, documents: Sequence[np.ndarray]) -> "TokenDocuments":
        """Joins the ids of documents."""
        offsets = np.cumsum([0, *(len(ids) for ids in documents)], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *documents]), offsets)


class PieceSource(grain.sources.RandomAccessDataSource):
    """Random access to the padded pieces of all documents.

    Args:
      shards: documents, possibly memory-mapped; each shard is indexed on its own.
      sequence_length: the most targets a piece may have.
      segment_alignment: the length of a padded piece is a multiple of it.
      vocab_size: an id at or above it is an error.

    Raises:
      UserError: sequence_length is not a multiple of segment_alignment.
    """

    def __init__(
        self,
        shards: Sequence[TokenDocuments],
        sequence_length: int,
        segment_alignment: int,
        vocab_size: int,
    ) -> None:
        check_alignment(sequence_length, segment_alignment)
        self._shards = shards
        self.sequence_length = sequence_length
        self._segment_alignment = segment_alignment
        self._vocab_size = vocab_size
        # Pieces before each document of a shard, and before each shard.
        self._pieces = [
            np.cumsum(np.concatenate([[0], -(-np.diff(s.offsets) // sequence_length)]))
            for s in shards
        ]
        self._shard_starts = np.cumsum([0, *(int(pieces[-1]) for pieces in self._pieces)])

    def __len__(self) -> int:
        return int(self._shard_starts[-1])

    def __getitem__(self, index: int) -> dict[str, Int32[np.ndarray, " piece"]]:
        shard = int(np.searchsorted(self._shard_starts, index, side="right")) - 1
        within = index - int(self._shard_starts[shard])
        tokens, offsets = self._shards[shard]
        pieces = self._pieces[shard]
        document = int(np.searchsorted(pieces, within, side="right")) - 1
        start = int(offsets[document]) + (within - int(pieces[document])) * self.sequence_length
        end = min(start + self.sequence_length, int(offsets[document + 1]))
        targets = tokens[start:end]
        if targets.max() >= self._vocab_size:
            raise UserError(
                f"The data hold the token {targets.max()}, but the tokenizer's vocabulary ends at "
                f"{self._vocab_size - 1}; prepare the data again."
            )
        padding = -len(targets) % self._segment_alignment
        return {"targets": np.pad(targets.astype(np.int32) + 1, (0, padding))}


def check_alignment(sequence_length: int, segment_alignment: int) -> None:
    """Raises UserError unless rows hold a whole number of aligned segments."""
    if sequence_length < 1 or sequence_length % segment_alignment:
        raise UserError(
            f"sequence_length is {sequence_length}, but must be a positive multiple of "
            f"{segment_alignment}, the gate chunk to which documents are aligned."
        )


def train_batches(
    pieces: PieceSource, finish: Callable[[Batch], Batch], batch_size: int, seed: int
) -> grain.IterDataset:
    """Endless batches of packed rows; the pieces are shuffled anew each epoch."""
    shuffled = grain.MapDataset.source(pieces).seed(seed).shuffle().repeat()
    packed = _pack(shuffled.to_iter_dataset(READ_OPTIONS), pieces, _OPEN_ROWS, seed)
    return packed.batch(batch_size, drop_remainder=True).map(finish)


def eval_batches(
    pieces: PieceSource, finish: Callable[[Batch], Batch], batch_size: int
) -> grain.IterDataset:
    """All pieces once, in order; rows that are missing in the last batch have no targets."""
    in_order = grain.MapDataset.source(pieces).to_iter_dataset(READ_OPTIONS)
    packed = _pack(in_order, pieces, batch_size, None)
    pad = functools.partial(grain.experimental.batch_and_pad, batch_size=batch_size)
    return packed.batch(batch_size, drop_remainder=False, batch_fn=pad).map(finish)


def _pack(
    dataset: grain.IterDataset, pieces: PieceSource, open_rows: int, seed: int | None
) -> grain.IterDataset:
    return grain.experimental.FirstFitPackIterDataset(
        dataset,
        length_struct={"targets": pieces.sequence_length},
        num_packing_bins=open_rows,
        seed=seed or 0,
        shuffle_bins=seed is not None,
    )


def finish_batch(
    packed: Batch, *, separator: int, token_bytes: Int32[np.ndarray, " vocab"]
) -> Batch:
    """Grain's packed targets to a batch of the trainer.

    Args:
      packed: `targets` int32 [B, T], ids plus one and 0 for none; `targets_segment_ids` int32
        [B, T], counted from one and 0 on a row's unused end.
      separator: first input of every segment, and the filling of padding.
      token_bytes: bytes each id stands for.

    Returns:
      tokens, targets, segment_ids, target_bytes int32 [B, T], and loss_mask float32 [B, T].
    """
    # A row's unused end becomes padding of its last segment.
    segment_ids = np.maximum.accumulate(packed["targets_segment_ids"], axis=1)
    segment_ids = np.maximum(segment_ids - 1, 0)
    has_target = packed["targets"] > 0
    targets = np.where(has_target, packed["targets"] - 1, 0)
    tokens = np.full_like(targets, separator)
    inside = has_target[:, 1:] & (segment_ids[:, 1:] == segment_ids[:, :-1])
    tokens[:, 1:] = np.where(inside, targets[:, :-1], separator)
    return {
        "tokens": tokens,
        "targets": targets,
        "segment_ids": segment_ids,
        "loss_mask": has_target.astype(np.float32),
        "target_bytes": np.where(has_target, token_bytes[targets], 0),
    }
