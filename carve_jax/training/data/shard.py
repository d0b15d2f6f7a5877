"""A shard: tokens of many documents end to end, in memory or mapped from a file and checked."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt32

from carve_jax.errors import UserError

# Tokens that share a checksum. Small, so that little is read besides what was asked for.
BLOCK = 1024


class Shard:
    """Documents of one split, without separators between them.

    Attributes:
      tokens: of all documents end to end.
      offsets: int64 [documents + 1], where each document starts.

    Args:
      tokens: see above; integers of any size.
      offsets: see above.
      checksums: of each `BLOCK` tokens as `block_checksums` gives them; None: nothing is checked.
      path: what a wrong checksum is said about.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        offsets: Int64[np.ndarray, " documents+1"],
        checksums: UInt32[np.ndarray, " blocks"] | None = None,
        path: Path | None = None,
    ) -> None:
        # Slices of np.memmap itself cost a microsecond each.
        self.tokens = tokens.view(np.ndarray)
        self.offsets = offsets
        self._checksums = checksums
        self._path = path
        self._checked = bytearray(0 if checksums is None else len(checksums))
        self._bytes = self.tokens.view(np.uint8).data
        self._block_bytes = BLOCK * tokens.itemsize

    @classmethod
    def concatenate(cls, documents: Sequence[np.ndarray]) -> "Shard":
        """Joins the ids of documents in memory."""
        offsets = np.cumsum([0, *(len(ids) for ids in documents)], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *documents]), offsets)

    def read(self, start: int, end: int) -> np.ndarray:
        """Tokens start … end-1; their blocks are checked when they are first read.

        Raises:
          UserError: a block is not what was written.
        """
        if self._checksums is not None and start < end:
            for block in range(start // BLOCK, (end - 1) // BLOCK + 1):
                if not self._checked[block]:
                    self._check(block)
        return self.tokens[start:end]

    def _check(self, block: int) -> None:
        assert self._checksums is not None
        start = block * self._block_bytes
        found = zlib.crc32(self._bytes[start : start + self._block_bytes])
        if found != self._checksums[block]:
            raise UserError(
                f"{self._path} was changed after it was written: the tokens from "
                f"{block * BLOCK} on fail their checksum; prepare the data again, or copy the "
                "file again from where it is whole."
            )
        self._checked[block] = 1


def block_checksums(tokens: np.ndarray) -> UInt32[np.ndarray, " blocks"]:
    """CRC-32 of each `BLOCK` tokens, as they lie in the file."""
    starts = range(0, len(tokens), BLOCK)
    return np.array([zlib.crc32(tokens[s : s + BLOCK].data) for s in starts], "<u4")
