"""Rows of many lengths as few shapes: lengths and counts are rounded up to a few sizes."""

from collections.abc import Iterator, Sequence

import numpy as np

from carve_jax.shapes import Int32

LEAST_LENGTH = 32


def bucket(length: int, least: int = LEAST_LENGTH) -> int:
    """The least of `least` · {1, 1.5, 2, 3, 4, 6, …} that holds `length`.

    `least` is even.
    """
    size = least
    while size < length:
        middle = size + size // 2
        if length <= middle:
            return middle
        size *= 2
    return size


def padded(length: int, most: int, least: int = LEAST_LENGTH) -> int:
    """What a row is padded to: a `bucket`, behind as many whole calls of `most` as it needs."""
    whole = (length - 1) // most * most
    return whole + min(most, bucket(length - whole, least))


def power_of_two(count: int) -> int:
    """The least power of two that is at least `count`."""
    return 1 << max(0, count - 1).bit_length()


def batches(
    lengths: Sequence[int], *, most_rows: int, most_tokens: int, least: int = LEAST_LENGTH
) -> Iterator[tuple[list[int], int, int]]:
    """Groups rows of like lengths, the longest first, so that what does not fit is seen at once.

    Args:
      lengths: of the rows.
      most_rows: of a batch.
      most_tokens: of a batch, padding included; a row alone may have more.
      least: tokens that rows are padded to.

    Yields:
      Numbers of the rows, how many rows the batch is to be padded to (as many as fit, or a quarter
      of that, …), and the length they are to be padded to (see `padded`).
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        length = padded(lengths[order[start]], most_tokens, least)
        rows = min(most_rows, max(1, most_tokens // length))
        rows = 1 << (rows.bit_length() - 1)
        members = order[start : start + rows]
        members = [i for i in members if padded(lengths[i], most_tokens, least) == length]
        while rows // 4 >= len(members):
            rows //= 4
        yield members, rows, length
        start += len(members)


def pad(
    rows: Sequence[Sequence[int] | np.ndarray], shape: tuple[int, int]
) -> Int32[np.ndarray, "B T"]:
    """The rows in an array of that shape, zeros behind them and below."""
    padded = np.zeros(shape, np.int32)
    for row, values in zip(padded, rows, strict=False):
        row[: len(values)] = values
    return padded
