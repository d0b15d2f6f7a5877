"""Order: which piece comes when, and which pieces share a row, from lengths and a seed alone.

No token is read for it, so every process works out the order of all rows and reads its own.

The pieces of an epoch are permuted, and the permuted pieces are cut into windows of a few thousand.
A window is packed into rows on its own and its rows are permuted: rows are a function of the seed
and the window's number, and a position in the stream of rows is two integers, however far it lies.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

# Pieces packed together: more leave less padding, and cost more when a run is resumed.
WINDOW = 8192
# Rows that a window has at least: its last rows are not full.
_LEAST_ROWS = 16
_ROUNDS = 6


def permute(
    positions: Int64[np.ndarray, " positions"], length: int, key: tuple[int, ...]
) -> Int64[np.ndarray, " positions"]:
    """Images of positions under a pseudorandom permutation of 0 … length-1, without a table of it.

    A balanced Feistel network over the next power of four, walked along its cycles until it lands
    below `length` (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 4).
    """
    half = np.uint64(max(1, ((length - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    found = positions.astype(np.uint64)
    left = np.arange(len(found))  # the positions whose walk goes on
    while len(left):
        a, b = found[left] >> half, found[left] & low
        for round_key in keys:
            a, b = b, a ^ (_mixed(b, round_key) & low)
        found[left] = (a << half) | b
        left = left[found[left] >= np.uint64(length)]
    return found.astype(np.int64)


def _mixed(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014) of values plus key."""
    z = values + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def pack(
    lengths: Int64[np.ndarray, " pieces"], capacity: int
) -> tuple[Int64[np.ndarray, " pieces"], int]:
    """Best fit decreasing: the row of each piece, and how many rows there are.

    The longest piece first, each goes to the fullest row that has room for it.

    Args:
      lengths: each from 1 to `capacity`.
      capacity: room of a row.
    """
    rows = np.zeros(len(lengths), np.int64)
    rows_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set where rows_by_room[r] is not empty
    count = 0
    order = np.argsort(-lengths, kind="stable")
    for piece, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, count
            count += 1
        rows[piece] = row
        if room > length:
            rows_by_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return rows, count


class Windows(NamedTuple):
    """How the endless stream of epochs is cut.

    A window is a part of an epoch, or several whole epochs where one makes too few rows.

    Attributes:
      pieces: of an epoch.
      parts: windows of an epoch.
      epochs: of a window; 1 unless `parts` is 1.
    """

    pieces: int
    parts: int
    epochs: int

    @classmethod
    def cut(cls, pieces: int, rows: float) -> "Windows":
        """Windows of epochs of so many pieces, which fill about so many rows."""
        parts = -(-pieces // WINDOW)
        return cls(pieces, parts, max(1, round(_LEAST_ROWS / max(rows, 1.0))) if parts == 1 else 1)

    def members(self, window: int, key: tuple[int, ...]) -> Int64[np.ndarray, " pieces"]:
        """The pieces of a window; each epoch is another permutation of all."""
        epoch, part = divmod(window, self.parts)
        if self.parts > 1:
            start, end = (self.pieces * p // self.parts for p in (part, part + 1))
            return permute(np.arange(start, end), self.pieces, (*key, epoch))
        first = window * self.epochs
        whole = np.arange(self.pieces)
        epochs = range(first, first + self.epochs)
        return np.concatenate([permute(whole, self.pieces, (*key, e)) for e in epochs])

    def epoch(self, window: int, share: float) -> float:
        """Epochs done once all windows before this one and a share of it are."""
        return (window + share) * self.epochs / self.parts
