"""Reads a directory of token files; `shard_header` says what they are."""

import hashlib
import itertools
from pathlib import Path

import numpy as np

from carve_jax.data.token_files.manifest import Manifest
from carve_jax.data.token_files.shard import BLOCK, FileShard, Shard, forget
from carve_jax.data.token_files.shard_header import DTYPES, SPLITS, TOKENIZER_FILE, Header, sha256
from carve_jax.data.tokenizers.checks import LARGEST_FILE
from carve_jax.data.tokenizers.lossless import lossy
from carve_jax.data.tokenizers.tokenizer import Tokenizer, tokenizer_from_json
from carve_jax.errors import UserError
from carve_jax.files import local_path, open_regular, read_text, reason_of, told

AGAIN = "prepare the data again"


class TokenFiles:
    """A directory of token files, opened for reading.

    Sizes, headers, offsets and the manifest are checked here and by `documents`; tokens when they
    are first read, 1,024 at a time; all of every file by `verify`.

    Attributes:
      tokenizer: the tokenizer of all shards.
      headers: of the shards of each split, by the shards' names.

    Raises:
      UserError: no shards, a half-written directory, a header, manifest or tokenizer that does not
        fit.
    """

    def __init__(self, path: str | Path) -> None:
        self._directory = local_path(path, "data.path") if path else Path(path)
        mend = "give the directory that experiments.prepare_data wrote (--config.data.path=…)"
        with told(f"data.path {self._directory}", mend):
            found = bool(path) and self._directory.is_dir()
        if not found:
            raise UserError(f"data.path is {str(path)!r}, which is no directory; {mend}.")
        manifest = Manifest.read(self._directory)
        self.headers = {
            split: {
                found.stem: Header.read(found)
                for found in sorted(self._directory.glob(f"{split}-*.json"))
            }
            for split in SPLITS
        }
        if manifest is not None:
            manifest.check(self._directory, self._all_headers())
        if not any(self.headers.values()):
            raise UserError(
                f"{self._directory} holds no token files (train-*.json); make some with "
                "experiments.prepare_data."
            )
        self.tokenizer = self._read_tokenizer()
        if manifest is not None and manifest.inexact:
            lossy(self.tokenizer)

    def _all_headers(self) -> dict[str, Header]:
        return {name: h for headers in self.headers.values() for name, h in headers.items()}

    def _read_tokenizer(self) -> Tokenizer:
        path = self._directory / TOKENIZER_FILE
        try:
            text = read_text(path, LARGEST_FILE)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The tokenizer {path} cannot be read ({reason_of(error)}); prepare the data again."
            ) from error
        tokenizer = tokenizer_from_json(text)
        for name, header in self._all_headers().items():
            if header.tokenizer_sha256 != sha256(text):
                raise UserError(
                    f"The shard {name} in {self._directory} was made with another tokenizer "
                    f"than {TOKENIZER_FILE} there; prepare the data again."
                )
            if header.vocab_size != tokenizer.vocab_size:
                raise UserError(
                    f"The shard {name} in {self._directory} says {header.vocab_size} ids, its "
                    f"tokenizer has {tokenizer.vocab_size}; prepare the data again."
                )
        return tokenizer

    def documents(self, split: str) -> list[Shard]:
        """The shards of a split; their tokens stay in their files.

        Raises:
          UserError: a file's size is not what the header says, or offsets that make no sense.
        """
        return [self._open(name, header) for name, header in self.headers[split].items()]

    def verify(self, index: int = 0, count: int = 1) -> int:
        """Reads every byte of the shards and holds it against its SHA-256.

        Args:
          index: which part of the shards, of as many as there are processes.
          count: parts.

        Returns:
          Shards that were read.

        Raises:
          UserError: a file is not what was written.
        """
        mine = list(itertools.islice(self._all_headers().items(), index, None, count))
        for name, header in mine:
            path = self._directory / f"{name}.bin"
            _check_digest(path, _file_digest(path), header.sha256)
            self._open(name, header)
        return len(mine)

    def _open(self, name: str, header: Header) -> Shard:
        tokens, path, checksums = (
            self._directory / f"{name}.{kind}" for kind in ("bin", "offsets", "crc")
        )
        _check_size(tokens, header.tokens * np.dtype(DTYPES[header.dtype]).itemsize)
        forget(tokens)  # one of that name may have been read before
        # The same bytes as signed numbers, which subtract without surprise.
        offsets = np.frombuffer(_content(path, 8 * (header.documents + 1)), "<i8")
        if offsets[0] != 0 or offsets[-1] != header.tokens or np.any(np.diff(offsets) < 0):
            raise UserError(
                f"{path} does not lead from 0 up to the {header.tokens} tokens of the shard; "
                "prepare the data again."
            )
        if header.version == 1:
            return FileShard(tokens, DTYPES[header.dtype], offsets)
        _check_digest(path, sha256(offsets.tobytes()), header.offsets_sha256)
        content = _content(checksums, 4 * -(-header.tokens // BLOCK))
        _check_digest(checksums, sha256(content), header.crc_sha256)
        sums = np.frombuffer(content, "<u4")
        return FileShard(tokens, DTYPES[header.dtype], offsets, sums)


def _content(path: Path, expected: int) -> bytes:
    """The bytes of a file that has as many as its header says."""
    _check_size(path, expected)
    with told(path, AGAIN), open_regular(path) as file:
        content = file.read(expected)
    if len(content) != expected:
        raise UserError(f"{path} became shorter while it was read: {AGAIN}")
    return content


def _check_size(path: Path, expected: int) -> None:
    with told(path, AGAIN):
        found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise UserError(
            f"{path} has {found} bytes where its header says {expected}; it was cut short or "
            "changed: prepare the data again."
        )


def _file_digest(path: Path) -> str:
    with told(path, AGAIN), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise UserError(
            f"{path} was changed after it was written: its SHA-256 is not that of its header; "
            "prepare the data again, or copy the file again from where it is whole."
        )
