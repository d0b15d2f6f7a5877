"""Writes token files: all of a shard, or nothing."""

import dataclasses
import hashlib
import json
import os
from array import array
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from carve_jax.data.token_files.shard import BLOCK, block_checksums
from carve_jax.data.token_files.shard_header import (
    DTYPES,
    TOKENIZER_FILE,
    Header,
    partial,
    said_clearly,
    sha256,
)
from carve_jax.data.tokenizers.tokenizer import Tokenizer
from carve_jax.files import sync_directory, write_synced
from carve_jax.shapes import Int32


def token_dtype(vocab_size: int) -> str:
    """The smallest type that holds all ids: "uint16" or "uint32"."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


class ShardWriter:
    """Writes one shard, document by document; a context manager.

    Leaving the context normally gives the files their names, header last. Leaving it by an
    exception removes all that was written.

    Args:
      directory: exists already.
      name: such as `train-00000`.
      tokenizer: its vocabulary decides between uint16 and uint32.

    Raises:
      UserError: the disk is full or the directory cannot be written.
    """

    def __init__(self, directory: Path, name: str, tokenizer: Tokenizer) -> None:
        kinds = ("bin", "offsets", "crc", "json")
        self._paths = {kind: directory / f"{name}.{kind}" for kind in kinds}
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._offsets = array("Q", [0])
        self._bytes = 0
        self._sha256 = hashlib.sha256()
        self._checksums: list[np.ndarray] = []
        self._rest = np.zeros(0, DTYPES[self._dtype])  # tokens behind the last whole block
        self._file: IO[bytes]
        self.header: Header | None = None  # once it is written

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return self._offsets[-1]

    @property
    def documents(self) -> int:
        """Documents written so far."""
        return len(self._offsets) - 1

    def __enter__(self) -> "ShardWriter":
        with said_clearly(self._paths["bin"]):
            self._paths["json"].unlink(missing_ok=True)
            self._file = open(partial(self._paths["bin"]), "wb")
        return self

    def write(self, ids: Int32[np.ndarray, " tokens"]) -> None:
        """Appends a document.

        Raises:
          UserError: the disk is full.
        """
        self.write_documents(ids, [len(ids)], int(self._tokenizer.token_bytes[ids].sum()))

    def write_documents(self, ids: np.ndarray, lengths: list[int], text_bytes: int) -> None:
        """Appends documents.

        Args:
          ids: of all of them, end to end.
          lengths: tokens of each.
          text_bytes: bytes that all the tokens stand for.

        Raises:
          UserError: the disk is full.
        """
        tokens = ids.astype(DTYPES[self._dtype], copy=False)
        with said_clearly(self._paths["bin"]):
            self._file.write(tokens.tobytes())
        self._sha256.update(tokens.tobytes())
        self._bytes += text_bytes
        for length in lengths:
            self._offsets.append(self._offsets[-1] + length)
        self._rest = np.concatenate([self._rest, tokens])
        whole = len(self._rest) // BLOCK * BLOCK
        if whole:
            self._checksums.append(block_checksums(self._rest[:whole]))
            self._rest = self._rest[whole:].copy()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with said_clearly(self._paths["bin"]):
                try:
                    if error is None:
                        # Power may fail once the header is there.
                        self._file.flush()
                        os.fsync(self._file.fileno())
                finally:
                    self._file.close()
                if error is None:
                    self._finish()
        finally:
            for path in self._paths.values():
                partial(path).unlink(missing_ok=True)

    def _finish(self) -> None:
        offsets = np.asarray(self._offsets, "<u8").tobytes()
        checksums = np.concatenate([*self._checksums, block_checksums(self._rest)]).tobytes()
        self.header = Header(
            dtype=self._dtype,
            tokens=self.tokens,
            documents=self.documents,
            bytes=self._bytes,
            vocab_size=self._tokenizer.vocab_size,
            tokenizer_sha256=sha256(self._tokenizer.to_json()),
            sha256=self._sha256.hexdigest(),
            offsets_sha256=sha256(offsets),
            crc_sha256=sha256(checksums),
        )
        text = json.dumps(dataclasses.asdict(self.header), indent=2) + "\n"
        contents = {"offsets": offsets, "crc": checksums, "json": text.encode()}
        for kind, content in contents.items():
            write_synced(partial(self._paths[kind]), content)
        for path in self._paths.values():  # the header is last
            os.replace(partial(path), path)
        sync_directory(path.parent)


def write_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    """Writes the tokenizer of a directory of shards.

    Raises:
      UserError: the disk is full or the directory cannot be written.
    """
    write_text(directory / TOKENIZER_FILE, tokenizer.to_json())


def write_text(path: Path, text: str) -> None:
    """Writes a small file: all of it or nothing.

    Raises:
      UserError: the disk is full or the directory cannot be written.
    """
    try:
        with said_clearly(path):
            write_synced(partial(path), text.encode())
            os.replace(partial(path), path)
            sync_directory(path.parent)
    finally:
        partial(path).unlink(missing_ok=True)
