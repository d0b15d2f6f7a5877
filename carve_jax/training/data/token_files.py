"""Token files: memory-mapped shards of documents, each with a JSON header.

A shard SPLIT-NUMBER (SPLIT is `train` or `eval`) is three files:

    SPLIT-NUMBER.bin      the tokens of all documents end to end, little-endian uint16 or uint32
    SPLIT-NUMBER.offsets  little-endian uint64, documents + 1 of them: where each document starts
    SPLIT-NUMBER.json     the header, written last: a shard without it does not exist

Beside them lies `tokenizer.json`, the tokenizer of all shards.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from carve_jax.errors import UserError
from carve_jax.shapes import Int32
from carve_jax.training.data.packing import TokenDocuments
from carve_jax.training.data.tokenizer import Tokenizer, tokenizer_from_json

FORMAT = "carve_jax tokens"
VERSION = 1
SPLITS = ("train", "eval")
TOKENIZER_FILE = "tokenizer.json"
_DTYPES = {"uint16": "<u2", "uint32": "<u4"}


@dataclasses.dataclass(frozen=True)
class Header:
    """What a shard's JSON header says.

    Attributes:
      dtype: "uint16" or "uint32".
      tokens: tokens in the shard.
      documents: documents in the shard.
      bytes: bytes of text the tokens stand for.
      vocab_size: ids of the tokenizer; every token is below it.
      tokenizer_sha256: SHA-256 of the tokenizer's JSON.
      sha256: SHA-256 of the .bin file.
    """

    dtype: str
    tokens: int
    documents: int
    bytes: int
    vocab_size: int
    tokenizer_sha256: str
    sha256: str
    format: str = FORMAT
    version: int = VERSION

    @classmethod
    def read(cls, path: Path) -> "Header":
        """Reads a header.

        Raises:
          UserError: not a header, or of a version this reader does not know.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT or values["version"] != VERSION:
                raise UserError(
                    f"{path} has format {values['format']!r} version {values['version']!r}; this "
                    f"reader knows {FORMAT!r} version {VERSION}: prepare the data again."
                )
            header = cls(**values)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is not a header of token files ({error!r}); prepare the data again."
            ) from error
        if header.dtype not in _DTYPES:
            raise UserError(f"{path} says dtype {header.dtype!r}; allowed are uint16 and uint32.")
        return header


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
        self._paths = {kind: directory / f"{name}.{kind}" for kind in ("bin", "offsets", "json")}
        self._tokenizer = tokenizer
        self._dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
        self._offsets = array("Q", [0])
        self._bytes = 0
        self._sha256 = hashlib.sha256()
        self._file: IO[bytes]

    def __enter__(self) -> "ShardWriter":
        with _said_clearly(self._paths["bin"]):
            self._paths["json"].unlink(missing_ok=True)
            self._file = open(_partial(self._paths["bin"]), "wb")
        return self

    def write(self, ids: Int32[np.ndarray, " tokens"]) -> None:
        """Appends a document.

        Raises:
          UserError: the disk is full.
        """
        raw = ids.astype(_DTYPES[self._dtype]).tobytes()
        with _said_clearly(self._paths["bin"]):
            self._file.write(raw)
        self._sha256.update(raw)
        self._bytes += int(self._tokenizer.token_bytes[ids].sum())
        self._offsets.append(self._offsets[-1] + len(ids))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with _said_clearly(self._paths["bin"]):
                self._file.close()
                if error is None:
                    self._finish()
        finally:
            for path in self._paths.values():
                _partial(path).unlink(missing_ok=True)

    def _finish(self) -> None:
        header = Header(
            dtype=self._dtype,
            tokens=self._offsets[-1],
            documents=len(self._offsets) - 1,
            bytes=self._bytes,
            vocab_size=self._tokenizer.vocab_size,
            tokenizer_sha256=_sha256(self._tokenizer.to_json()),
            sha256=self._sha256.hexdigest(),
        )
        offsets = np.asarray(self._offsets, "<u8").tobytes()
        _partial(self._paths["offsets"]).write_bytes(offsets)
        text = json.dumps(dataclasses.asdict(header), indent=2) + "\n"
        _partial(self._paths["json"]).write_text(text, encoding="utf-8")
        for path in self._paths.values():  # the header is last
            os.replace(_partial(path), path)


def write_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    """Writes the tokenizer of a directory of shards.

    Raises:
      UserError: the disk is full or the directory cannot be written.
    """
    path = directory / TOKENIZER_FILE
    try:
        with _said_clearly(path):
            _partial(path).write_text(tokenizer.to_json(), encoding="utf-8")
            os.replace(_partial(path), path)
    finally:
        _partial(path).unlink(missing_ok=True)


class TokenFiles:
    """A directory of token files, opened for reading.

    Attributes:
      tokenizer: the tokenizer of all shards.
      headers: of the shards of each split, by the shards' names.

    Raises:
      UserError: no shards, a file cut short, a header or tokenizer that does not fit.
    """

    def __init__(self, path: str | Path) -> None:
        self._directory = Path(path)
        if not path or not self._directory.is_dir():
            raise UserError(
                f"data.path is {str(path)!r}, which is no directory; give the directory that "
                "experiments.prepare_data wrote."
            )
        self.headers = {
            split: {
                found.stem: Header.read(found)
                for found in sorted(self._directory.glob(f"{split}-*.json"))
            }
            for split in SPLITS
        }
        if not any(self.headers.values()):
            raise UserError(
                f"{self._directory} holds no token files (train-*.json); make some with "
                "experiments.prepare_data."
            )
        self.tokenizer = self._read_tokenizer()

    def _read_tokenizer(self) -> Tokenizer:
        path = self._directory / TOKENIZER_FILE
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"The tokenizer {path} cannot be read ({error}); prepare the data again."
            ) from error
        tokenizer = tokenizer_from_json(text)
        for split in SPLITS:
            for name, header in self.headers[split].items():
                if header.tokenizer_sha256 != _sha256(text):
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

    def documents(self, split: str) -> list[TokenDocuments]:
        """The memory-mapped shards of a split.

        Raises:
          UserError: a file's size is not what the header says, or offsets that make no sense.
        """
        return [self._open(name, header) for name, header in self.headers[split].items()]

    def _open(self, name: str, header: Header) -> TokenDocuments:
        tokens = _mapped(self._directory / f"{name}.bin", _DTYPES[header.dtype], header.tokens)
        path = self._directory / f"{name}.offsets"
        offsets = _mapped(path, "<u8", header.documents + 1).astype(np.int64)
        if offsets[0] != 0 or offsets[-1] != header.tokens or np.any(np.diff(offsets) < 0):
            raise UserError(
                f"{path} does not lead from 0 up to the {header.tokens} tokens of the shard; "
                "prepare the data again."
            )
        return TokenDocuments(tokens, offsets)


def _mapped(path: Path, dtype: str, count: int) -> np.ndarray:
    expected = count * np.dtype(dtype).itemsize
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise UserError(
            f"{path} has {found} bytes where its header says {expected}; it was cut short or "
            "changed: prepare the data again."
        )
    if not count:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def _said_clearly(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}); nothing was left half-written: "
            "make room or choose another directory, then run again."
        ) from error
