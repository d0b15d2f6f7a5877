"""Documents to packed batches.

A document of n tokens x is cut into pieces of at most T targets. The piece of the targets
x[a:b] reads (separator, x[a], …, x[b-2]): its inputs are its targets moved right by one, so every
token of the document is predicted exactly once and no position is spent on the overlap. Pieces are
padded to a multiple of the segment alignment and packed into rows of T; each piece is a segment of
its row.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from carve_jax.data.order import pack
from carve_jax.data.token_files.shard import Shard
from carve_jax.errors import UserError
from carve_jax.shapes import Int32

Batch = dict[str, Any]
_NO_TARGET = -1


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a window, without their tokens.

    Attributes:
      places: of the pieces of all rows, row by row: shard, first token in it, number of tokens.
      starts: where each row's pieces start; the last entry is how many there are.
    """

    places: Int64[np.ndarray, "pieces 3"]
    starts: Int64[np.ndarray, " rows+1"]

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.starts) - 1

    def row(self, index: int) -> Int64[np.ndarray, "pieces_of_row 3"]:
        """The pieces of one row, in order."""
        return self.places[self.starts[index] : self.starts[index + 1]]

    def reordered(self, order: Int64[np.ndarray, " rows"]) -> "Rows":
        """The same rows, row i being what was row order[i]."""
        counts = np.diff(self.starts)[order]
        starts = np.concatenate([[0], np.cumsum(counts)])
        # From each place among the new pieces to the place among the old ones.
        shift = np.repeat(self.starts[:-1][order] - starts[:-1], counts)
        return Rows(self.places[np.arange(len(self.places)) + shift], starts)


class Pieces:
    """The pieces of all documents, by number.

    Args:
      shards: documents, in memory or in files.
      sequence_length: the most targets a piece may have.
      segment_alignment: the length of a padded piece is a multiple of it.
      vocab_size: a token at or above it is an error.

    Raises:
      UserError: sequence_length is not a multiple of segment_alignment.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        sequence_length: int,
        segment_alignment: int,
        vocab_size: int,
    ) -> None:
        check_alignment(sequence_length, segment_alignment)
        self._shards = shards
        self.sequence_length = sequence_length
        self.segment_alignment = segment_alignment
        self._vocab_size = vocab_size
        # Pieces before each document of a shard, and before each shard.
        self._pieces = [
            np.cumsum(np.append(0, -(-np.diff(s.offsets) // sequence_length)), dtype=np.int32)
            for s in shards
        ]
        self._shard_starts = np.cumsum([0, *(int(pieces[-1]) for pieces in self._pieces)])
        self.tokens = sum(int(s.offsets[-1]) for s in shards)

    def __len__(self) -> int:
        return int(self._shard_starts[-1])

    def locate(self, numbers: Int64[np.ndarray, " pieces"]) -> Int64[np.ndarray, "pieces 3"]:
        """Shard, first token and number of tokens of each piece."""
        places = np.zeros((len(numbers), 3), np.int64)
        shards = np.searchsorted(self._shard_starts, numbers, side="right") - 1
        within = numbers - self._shard_starts[shards]
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            pieces, offsets = self._pieces[shard], self._shards[shard].offsets
            # Of one type, or all of `pieces` would be copied.
            document = np.searchsorted(pieces, within[here].astype(np.int32), side="right") - 1
            start = offsets[document] + (within[here] - pieces[document]) * self.sequence_length
            places[here, 0] = shard
            places[here, 1] = start
            places[here, 2] = np.minimum(self.sequence_length, offsets[document + 1] - start)
        return places

    def packed(self, numbers: Int64[np.ndarray, " pieces"]) -> Rows:
        """The pieces packed into rows."""
        places = self.locate(numbers)
        units = -(-places[:, 2] // self.segment_alignment)
        rows, count = pack(units, self.sequence_length // self.segment_alignment)
        order = np.argsort(rows, kind="stable")
        starts = np.searchsorted(rows[order], np.arange(count + 1))
        return Rows(places[order], starts)

    def fill(
        self,
        places: Int64[np.ndarray, "pieces 3"],
        targets: Int32[np.ndarray, " T"],
        begins: Int32[np.ndarray, " T"],
    ) -> None:
        """Reads the pieces of one row into it.

        Args:
          places: of the row's pieces.
          targets: positions that stay without a target are left alone.
          begins: set to 1 where a segment begins.

        Raises:
          UserError: a token outside the vocabulary, or a shard that fails its checksum.
        """
        position = 0
        for shard, start, length in places.tolist():
            targets[position : position + length] = self._shards[shard].read(start, start + length)
            begins[position] = 1
            position += length + -length % self.segment_alignment
        wrong = targets[(targets >= self._vocab_size) | (targets < _NO_TARGET)]
        if len(wrong):
            raise UserError(
                f"The data hold the token {wrong[0].view(np.uint32)}, but the tokenizer's "
                f"vocabulary ends at {self._vocab_size - 1}; prepare the data again."
            )


def check_alignment(sequence_length: int, segment_alignment: int) -> None:
    """Raises UserError unless rows hold a whole number of aligned segments."""
    if sequence_length < 1 or sequence_length % segment_alignment:
        raise UserError(
            f"sequence_length is {sequence_length}, but must be a positive multiple of "
            f"{segment_alignment}, the gate chunk to which documents are aligned."
        )


class Packer:
    """Makes batches of rows.

    Args:
      separator: first input of every segment, and the filling of padding.
      token_bytes: [vocab] int32, bytes each id stands for.
      sequence_length: T.
    """

    def __init__(
        self, separator: int, token_bytes: Int32[np.ndarray, " vocab"], sequence_length: int
    ) -> None:
        self._separator = separator
        self._token_bytes = np.append(token_bytes, np.int32(0))  # the last is that of no target
        self._sequence_length = sequence_length

    def batch(self, rows: Iterable[tuple[Pieces, np.ndarray] | None]) -> Batch:
        """A batch [B, T] of the trainer of these rows, each given as its source and places in it.

        Args:
          rows: B of them; None is a row without targets.

        Returns:
          tokens, targets, segment_ids, target_bytes int32 [B, T], and loss_mask float32 [B, T].

        Raises:
          UserError: see `Pieces.fill`.
        """
        rows = list(rows)
        shape = len(rows), self._sequence_length
        targets = np.full(shape, _NO_TARGET, np.int32)
        begins = np.zeros(shape, np.int32)
        begins[:, 0] = 1
        for index, row in enumerate(rows):
            if row is not None:
                pieces, places = row
                pieces.fill(places, targets[index], begins[index])
        has_target = targets != _NO_TARGET
        tokens = np.full(shape, self._separator, np.int32)
        reads = has_target[:, 1:] & (begins[:, 1:] == 0)
        np.copyto(tokens[:, 1:], targets[:, :-1], where=reads)
        target_bytes = self._token_bytes[targets]
        targets[~has_target] = 0
        return {
            "tokens": tokens,
            "targets": targets,
            # A row's unused end is padding of its last segment.
            "segment_ids": np.cumsum(begins, axis=1, dtype=np.int32) - 1,
            "loss_mask": has_target.astype(np.float32),
            "target_bytes": target_bytes,
        }
