"""Pieces of work: parts of a file that are read and tokenised at once, and what is too large."""

from pathlib import Path
from typing import Any, NamedTuple

from carve_jax.data.sources.documents import Document
from carve_jax.errors import UserError

LARGEST_DOCUMENT = 64 << 20
AGAIN = "correct --input, or mend the file"


class Columns(NamedTuple):
    """Fields of a JSON line, or columns of a Parquet file.

    Attributes:
      text: of the text.
      name: of a name for the document; empty: the file and the number of the line or row.
    """

    text: str = "text"
    name: str = ""


class WorkSize(NamedTuple):
    """The most that is one piece of work.

    Attributes:
      bytes: of JSON lines; more if a line is longer.
      rows: of a Parquet file.
      document: bytes of a text file, a line or a row's text; a larger one is refused. Tokenising
        takes about twelve times as much memory.
    """

    bytes: int = 4 << 20
    rows: int = 8192
    document: int = LARGEST_DOCUMENT


class Source(NamedTuple):
    """Text to read.

    Attributes:
      path: of the file; of a built-in input, its name.
      name: what its documents are named after.
      built_in: the input's name, where it is no file of the user's: `stdlib` or `package_docs`.
    """

    path: Path
    name: str
    built_in: str = ""


class Work(NamedTuple):
    """Documents that are tokenised together.

    Attributes:
      source: where they are.
      start: first byte of JSON lines, first row of its group of a Parquet file.
      end: one after the last.
      number: of the first line or row, counted from 1.
      group: row group of a Parquet file.
      size: bytes of the source that this work stands for.
      documents: the documents themselves, of `stdlib`.
      largest: bytes of a document; a larger one is refused.
    """

    source: Source
    start: int
    end: int
    number: int
    size: int
    group: int = 0
    documents: tuple[Document, ...] = ()
    largest: int = LARGEST_DOCUMENT


class Surveyed(NamedTuple):
    """A source that has been read through once.

    Attributes:
      facts: name, bytes and sha256, for the manifest.
      work: all of it, in order.
    """

    facts: dict[str, Any]
    work: list[Work]


def check_size(size: int, where: str, largest: int) -> None:
    """Raises UserError for a document that would take too much memory."""
    if size > largest:
        raise UserError(
            f"{where} is a document of {size:,} bytes or more, and at most {largest:,} are read, "
            "for memory's sake: cut it into documents, or give a larger --largest_document"
        )
