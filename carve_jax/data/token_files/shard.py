"""A shard: tokens of many documents end to end, in memory or read from a file and checked.

Files are read and not mapped: where a mapped file is cut short, or its disk fails, the kernel ends
the process without a word.
"""

import collections
import contextlib
import os
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt32

from carve_jax.errors import UserError
from carve_jax.files import open_regular, told

# Tokens that share a checksum. Small, so that little is read besides what was asked for.
BLOCK = 1024
AGAIN = "put the file back as it was and run again, or prepare the data again"


class Shard:
    """Documents of one split, without separators between them, in memory.

    Attributes:
      tokens: of all documents end to end.
      offsets: int64 [documents + 1], where each document starts.
    """

    def __init__(self, tokens: np.ndarray, offsets: Int64[np.ndarray, " documents+1"]) -> None:
        self.tokens = tokens
        self.offsets = offsets

    @classmethod
    def concatenate(cls, documents: Sequence[np.ndarray]) -> "Shard":
        """Joins the ids of documents in memory."""
        offsets = np.cumsum([0, *(len(ids) for ids in documents)], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *documents]), offsets)

    def read(self, start: int, end: int) -> np.ndarray:
        """Tokens start … end-1."""
        return self.tokens[start:end]


class FileShard(Shard):
    """Documents of one split whose tokens stay in their file.

    Args:
      path: of the tokens.
      dtype: of a token.
      offsets: see `Shard`; they are held in memory, 8 bytes per document.
      checksums: of each `BLOCK` tokens as `block_checksums` gives them; None: nothing is checked.
        Held in memory, 4 bytes per block.
    """

    def __init__(
        self,
        path: Path,
        dtype: str,
        offsets: Int64[np.ndarray, " documents+1"],
        checksums: UInt32[np.ndarray, " blocks"] | None = None,
    ) -> None:
        self.offsets = offsets
        self._path = path
        self._dtype = np.dtype(dtype)
        self._count = int(offsets[-1])
        self._checksums = checksums
        self._checked = bytearray(0 if checksums is None else len(checksums))

    @property
    def tokens(self) -> np.ndarray:  # type: ignore[override]
        """All of them, read anew."""
        return self.read(0, self._count)

    def read(self, start: int, end: int) -> np.ndarray:
        """Tokens start … end-1; their blocks are checked when they are first read.

        Raises:
          UserError: a block is not what was written, or the file cannot be read any more.
        """
        end = min(end, self._count)
        if start >= end:
            return np.zeros(0, self._dtype)
        first, last = start // BLOCK, (end - 1) // BLOCK
        if self._checksums is None or all(self._checked[first : last + 1]):
            return self._read(start, end)
        whole = self._read(first * BLOCK, min((last + 1) * BLOCK, self._count))
        for block, found in enumerate(block_checksums(whole).tolist(), start=first):
            if found != self._checksums[block]:
                raise UserError(
                    f"{self._path} was changed after it was written: the tokens from "
                    f"{block * BLOCK} on fail their checksum; prepare the data again, or copy the "
                    "file again from where it is whole."
                )
            self._checked[block] = 1
        return whole[start - first * BLOCK : end - first * BLOCK]

    def _read(self, start: int, end: int) -> np.ndarray:
        size = self._dtype.itemsize
        with told(self._path, AGAIN):
            raw = _OPEN.read(self._path, (end - start) * size, start * size)
        if len(raw) != (end - start) * size:
            raise UserError(
                f"{self._path} has become shorter than the {self._count:,} tokens it had when it "
                f"was opened: {AGAIN}"
            )
        return np.frombuffer(raw, self._dtype)


class OpenFiles:
    """Files kept open for reading, fewer than the process may have, whoever was used last.

    Args:
      most: files; None for half of what the process may open.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most or _half_of_allowed()
        self._handles: collections.OrderedDict[Path, int] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, count: int, start: int) -> bytes:
        """Bytes from `start` on: `count` of them, or fewer where the file ends.

        Raises:
          OSError: it cannot be opened or read.
        """
        with self._lock:
            handle = self._handles.pop(path, None)
            if handle is None:
                while len(self._handles) >= self._most:
                    os.close(self._handles.popitem(last=False)[1])
                with open_regular(path) as file:
                    handle = os.dup(file.fileno())
            self._handles[path] = handle
            parts = []
            while count > 0 and (part := os.pread(handle, count, start)):
                parts.append(part)
                count, start = count - len(part), start + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def forget(self, path: Path) -> None:
        """Closes a file, so that what has its name now is opened."""
        with self._lock:
            handle = self._handles.pop(path, None)
            if handle is not None:
                os.close(handle)


def _half_of_allowed() -> int:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        return min(max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 8), 4096)
    return 128


_OPEN = OpenFiles()
forget = _OPEN.forget


def block_checksums(tokens: np.ndarray) -> UInt32[np.ndarray, " blocks"]:
    """CRC-32 of each `BLOCK` tokens, as they lie in the file."""
    starts = range(0, len(tokens), BLOCK)
    return np.array([zlib.crc32(tokens[s : s + BLOCK].data) for s in starts], "<u4")
