"""Batches from rows: one global order, of which each process makes its own block.

A global batch is the next rows of the order. A process makes a contiguous block of them, so the
blocks of all processes, joined, are the batch that a single process would make. The position is
that of the global batch: what one process saved, any number of processes can take up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import grain
import numpy as np

from carve_jax.data.order import Windows, permute
from carve_jax.data.packing import Batch, Pieces, Rows
from carve_jax.errors import UserError

# The first word of a random stream's key, after the seed.
_PIECES, _ROWS = 0, 1

# What a position in a source is called where it is saved, and here.
_PART_STATE = {"pieces": "_total", "window": "window", "row": "row", "rows": "count"}
_OTHER_DATA = (
    "The position in the data that was saved does not belong to these data; go on with the data "
    "the run began with, or start a new run."
)

Row = TypeVar("Row")
PieceRow = tuple[Pieces, np.ndarray]


class Block(NamedTuple):
    """The rows of a global batch that this process makes.

    Attributes:
      batch_size: rows of the global batch.
      start: first row.
      end: one after the last.
    """

    batch_size: int
    start: int
    end: int

    @classmethod
    def of_process(cls, batch_size: int, index: int, count: int) -> "Block":
        """An equal share of the rows.

        Raises:
          UserError: no such process, or a batch that does not divide.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; give at least one row.")
        if count < 1 or not 0 <= index < count:
            raise UserError(f"There is no process {index} of {count}; they count from 0.")
        if batch_size % count:
            raise UserError(
                f"batch_size is {batch_size}, which {count} processes cannot share equally; give "
                f"a multiple of {count}."
            )
        share = batch_size // count
        return cls(batch_size, index * share, (index + 1) * share)


class RowOrder(Protocol[Row]):
    """An endless order of rows with a position in it."""

    def take(self, count: int) -> list[Row]:
        """The next rows."""
        ...

    def epochs(self) -> dict[str, float]:
        """How often each source has been through, by its name."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The position, as JSON can hold it."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position.

        Raises:
          UserError: it is not one of this order.
        """
        ...


class BatchIterator(grain.DatasetIterator, Generic[Row]):
    """Endless batches of this process's rows; Orbax saves its position as that of any of Grain's.

    Args:
      order: of the rows of all processes.
      make: a batch of rows.
      block: which rows of each global batch are made.
    """

    def __init__(
        self, order: RowOrder[Row], make: Callable[[Sequence[Row]], Batch], block: Block
    ) -> None:
        super().__init__()
        self._order = order
        self._make = make
        self._block = block

    def __next__(self) -> Batch:
        rows = self._order.take(self._block.batch_size)
        return self._make(rows[self._block.start : self._block.end])

    def epochs(self) -> dict[str, float]:
        """How often each source has been through, by its name; empty where none ever ends."""
        return self._order.epochs()

    def get_state(self) -> dict[str, Any]:
        """The position behind the last global batch; the same in every process."""
        return self._order.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that any process saved, of any number of processes.

        Raises:
          UserError: it is no position. One in other data is refused when a batch is asked for.
        """
        self._order.set_state(state)


class _Part:
    """The rows of one source and a position among them."""

    def __init__(self, pieces: Pieces, key: tuple[int, ...]) -> None:
        self.pieces = pieces
        self._key = key
        self._windows = Windows.cut(len(pieces), pieces.tokens / pieces.sequence_length)
        self._total = len(pieces)  # of the data that the position is in
        self.window = self.row = self.count = 0
        self._rows: Rows | None = None

    def _open(self) -> Rows:
        """The rows of the window at the position."""
        if self._rows is None:
            members = self._windows.members(self.window, (*self._key, _PIECES))
            rows = self.pieces.packed(members)
            order = permute(np.arange(rows.count), rows.count, (*self._key, _ROWS, self.window))
            self._rows = rows.reordered(order)
        return self._rows

    def next(self) -> PieceRow:
        rows = self._open()
        if self._total != len(self.pieces) or self.row >= rows.count:
            raise UserError(_OTHER_DATA)
        found = self.pieces, rows.row(self.row)
        self.row += 1
        self.count += 1
        if self.row == rows.count:
            self.window, self.row, self._rows = self.window + 1, 0, None
        return found

    def epoch(self) -> float:
        """How often the pieces have been through, with the share of the time under way."""
        share = self.row / self._open().count if self.row else 0.0
        return self._windows.epoch(self.window, share)

    def get_state(self) -> dict[str, int]:
        return {name: getattr(self, attribute) for name, attribute in _PART_STATE.items()}

    def set_state(self, state: Mapping[str, int]) -> None:
        for name, attribute in _PART_STATE.items():
            setattr(self, attribute, state[name])
        self._rows = None


class MixedOrder:
    """Rows of one or several sources in the proportions of their weights, each in its own order.

    The next row is of the source that lags most behind its share, so after any number of rows
    every source has its share of them to within a row or so.

    Args:
      sources: by name.
      weights: of each source, positive; their sum is the whole.
      seed: of all orders.
    """

    def __init__(self, sources: Mapping[str, Pieces], weights: Sequence[float], seed: int) -> None:
        self._names = list(sources)
        self._parts = [_Part(p, (seed, i)) for i, p in enumerate(sources.values())]
        self._shares = [weight / sum(weights) for weight in weights]

    def take(self, count: int) -> list[PieceRow]:
        """The next rows.

        Raises:
          UserError: the position that was set is not in these data.
        """
        if len(self._parts) == 1:
            return [self._parts[0].next() for _ in range(count)]
        total = sum(part.count for part in self._parts)
        rows = []
        for done in range(total + 1, total + count + 1):
            lags = [
                share * done - part.count
                for share, part in zip(self._shares, self._parts, strict=True)
            ]
            rows.append(self._parts[lags.index(max(lags))].next())
        return rows

    def epochs(self) -> dict[str, float]:
        """How often each source has been through."""
        return {n: part.epoch() for n, part in zip(self._names, self._parts, strict=True)}

    def get_state(self) -> dict[str, Any]:
        """The position: of each source, its window, the row in it, and all rows so far."""
        return {"sources": [part.get_state() for part in self._parts]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position; whether it lies in these data is found when rows are taken.

        Raises:
          UserError: it is not a position among as many sources; it stays where it was.
        """
        saved = state["sources"] if list(state) == ["sources"] else []
        if len(saved) != len(self._parts) or not all(map(_is_position, saved)):
            raise UserError(_OTHER_DATA)
        for part, of_part in zip(self._parts, saved, strict=True):
            part.set_state(of_part)


def _is_position(saved: Any) -> bool:
    return (
        isinstance(saved, Mapping)
        and saved.keys() == _PART_STATE.keys()
        and all(isinstance(value, int) and value >= 0 for value in saved.values())
    )


class CountedOrder:
    """The numbers 0, 1, 2, …: rows that are made from their number."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> list[int]:
        """The next numbers."""
        self._next += count
        return list(range(self._next - count, self._next))

    def epochs(self) -> dict[str, float]:
        """None: the numbers never end."""
        return {}

    def get_state(self) -> dict[str, Any]:
        """The next number."""
        return {"next": self._next}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a number.

        Raises:
          UserError: the state is none of this order.
        """
        if list(state) != ["next"] or not isinstance(state["next"], int) or state["next"] < 0:
            raise UserError(_OTHER_DATA)
        self._next = state["next"]


class HeldOut(Generic[Row]):
    """Held-out rows, in the same order each time; the last batch is filled up with None.

    Args:
      rows: gives all rows anew at each call.
      make: a batch of rows, None among them.
      block: which rows of each global batch are made.
    """

    def __init__(
        self,
        rows: Callable[[], Iterator[Row]],
        make: Callable[[Sequence[Row | None]], Batch],
        block: Block,
    ) -> None:
        self._rows = rows
        self._make = make
        self._block = block

    def __iter__(self) -> Iterator[Batch]:
        batch: list[Row | None] = []
        for row in self._rows():
            batch.append(row)
            if len(batch) == self._block.batch_size:
                yield self._make(batch[self._block.start : self._block.end])
                batch = []
        if batch:
            batch += [None] * (self._block.batch_size - len(batch))
            yield self._make(batch[self._block.start : self._block.end])


def rows_in_order(pieces: Pieces, window: int) -> Iterator[PieceRow]:
    """All pieces once, packed as they come, so many at a time."""
    for start in range(0, len(pieces), window):
        rows = pieces.packed(np.arange(start, min(start + window, len(pieces))))
        for index in range(rows.count):
            yield pieces, rows.row(index)
