"""Token files: shards of documents, each with a JSON header.

A shard SPLIT-NUMBER (SPLIT is `train` or `eval`) is four files:

    SPLIT-NUMBER.bin      the tokens of all documents end to end, little-endian uint16 or uint32
    SPLIT-NUMBER.offsets  little-endian uint64, documents + 1 of them: where each document starts
    SPLIT-NUMBER.crc      little-endian uint32, the CRC-32 of each 1,024 tokens of the .bin file
    SPLIT-NUMBER.json     the header, written last: a shard without it does not exist

Beside them lie `tokenizer.json`, the tokenizer of all shards, and `manifest.json`, which says what
they were made of. Version 1 had no .crc files, and earlier directories no manifest.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from carve_jax.errors import UserError
from carve_jax.files import read_json, reason_of, shown, told

FORMAT = "carve_jax tokens"
VERSION = 2
READABLE = (1, 2)
SPLITS = ("train", "eval")
TOKENIZER_FILE = "tokenizer.json"
NO_HEADER = "it is not a header of token files; prepare the data again"
DTYPES = {"uint16": "<u2", "uint32": "<u4"}


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
      offsets_sha256: SHA-256 of the .offsets file; absent from version 1.
      crc_sha256: SHA-256 of the .crc file; absent from version 1.
    """

    dtype: str
    tokens: int
    documents: int
    bytes: int
    vocab_size: int
    tokenizer_sha256: str
    sha256: str
    offsets_sha256: str = ""
    crc_sha256: str = ""
    format: str = FORMAT
    version: int = VERSION

    @classmethod
    def read(cls, path: Path) -> "Header":
        """Reads a header.

        Raises:
          UserError: not a header, or of a version this reader does not know.
        """
        try:
            values = read_json(path, mend=NO_HEADER)
            if values["format"] != FORMAT or values["version"] not in READABLE:
                raise UserError(
                    f"{path} has format {shown(values['format'])} version "
                    f"{shown(values['version'])}; this reader knows {FORMAT!r} versions 1 and 2: "
                    "prepare the data again."
                )
            header = cls(**values)
        except (OSError, KeyError, TypeError) as error:
            raise UserError(f"{path}: {NO_HEADER} ({reason_of(error)})") from error
        for field in dataclasses.fields(cls):
            value = getattr(header, field.name)
            if type(value) is not field.type or (field.type is int and value < 0):
                raise UserError(f"{path}: {NO_HEADER} ({field.name} is {shown(value)})")
        if header.dtype not in DTYPES:
            said = shown(header.dtype)
            raise UserError(f"{path} says dtype {said}; allowed are uint16 and uint32.")
        return header


def sha256(data: str | bytes) -> str:
    """SHA-256, hexadecimal; of a text, that of its UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def partial(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def said_clearly(path: Path) -> Iterator[None]:
    """Makes a failure to write a file a UserError."""
    mend = "nothing was left half-written; make room or choose another directory, then run again"
    with told(path, mend, failed="could not be written"):
        yield
