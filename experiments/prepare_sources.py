"""Where prepare_data finds text: files of text, JSON lines or Parquet, cut into pieces of work.

A piece of work is a part of one file, small enough to be read at once, and knows the numbers of its
lines or rows: which pieces there are, and what their documents are called, depends on the files
alone.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from carve_jax.errors import UserError
from carve_jax.training.data.documents import Document, fingerprint
from carve_jax.training.data.stdlib import stdlib_documents
from carve_jax.training.settings import nearest

SUFFIXES = (".txt", ".md", ".rst", ".jsonl", ".parquet")
STDLIB_PARTS = ("topics", "docstrings")


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
      bytes: of a .jsonl file; more if a line is longer.
      rows: of a Parquet file.
    """

    bytes: int = 4 << 20
    rows: int = 8192


class Source(NamedTuple):
    """A file, and what its documents are named after; the path `stdlib` is Python's own text."""

    path: Path
    name: str


class Work(NamedTuple):
    """Documents that are tokenised together.

    Attributes:
      source: where they are.
      start: first byte of a .jsonl file, first row (of the whole file) of a Parquet file.
      end: one after the last.
      number: of the first line or row, counted from 1.
      group: row group of a Parquet file.
      size: bytes of the source that this work stands for.
      documents: the documents themselves, of `stdlib`.
    """

    source: Source
    start: int
    end: int
    number: int
    size: int
    group: int = 0
    documents: tuple[Document, ...] = ()


class Surveyed(NamedTuple):
    """A source that has been read through once.

    Attributes:
      facts: name, bytes and sha256, for the manifest.
      work: all of it, in order.
    """

    facts: dict[str, Any]
    work: list[Work]


def list_sources(inputs: Sequence[str]) -> list[Source]:
    """The files meant by the inputs, in a fixed order.

    Raises:
      UserError: an input that does not exist, or is no text; a directory without text files.
    """
    sources: list[Source] = []
    for given in inputs:
        path = Path(given)
        if given == "stdlib":
            sources.append(Source(path, given))
        elif path.is_file():
            if path.suffix in (".gz", ".zst", ".bz2", ".xz", ".zip"):
                raise UserError(
                    f"--input names {given!r}, which is compressed; unpack it, or convert it to "
                    "Parquet, first."
                )
            sources.append(Source(path, path.name))
        elif path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
            if not found:
                raise UserError(f"{given} holds no text files ({', '.join(SUFFIXES)}).")
            sources.extend(Source(p, p.relative_to(path).as_posix()) for p in found)
        else:
            raise UserError(f"--input names {given!r}, which is no file, directory or 'stdlib'.")
    return sources


def source_bytes(source: Source) -> int:
    """Bytes of a source."""
    if source.name == "stdlib":
        return sum(len(document.text) for document in stdlib_documents(STDLIB_PARTS))
    return source.path.stat().st_size


def survey(source: Source, columns: Columns, most: WorkSize) -> Surveyed:
    """Reads a source through once, for its digest and for where to cut it.

    Raises:
      UserError: an unknown column, or a file that is no Parquet.
    """
    if source.name == "stdlib":
        documents = stdlib_documents(STDLIB_PARTS)
        size = source_bytes(source)
        facts = {"name": source.name, "bytes": size, "sha256": fingerprint(documents)}
        return Surveyed(facts, [Work(source, 0, len(documents), 1, size, documents=documents)])
    if source.path.suffix == ".jsonl":
        return _survey_lines(source, most.bytes)
    with source.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = source_bytes(source)
    facts = {"name": source.name, "bytes": size, "sha256": digest}
    if source.path.suffix == ".parquet":
        return Surveyed(facts, _cut_rows(source, size, columns, most.rows))
    return Surveyed(facts, [Work(source, 0, size, 1, size)])


def _survey_lines(source: Source, most: int) -> Surveyed:
    """Cuts behind the last line that ends in each `most` bytes, or later where a line is longer."""
    digest = hashlib.sha256()
    work, start, position, number, lines = [], 0, 0, 1, 0
    with source.path.open("rb") as file:
        while chunk := file.read(most):
            digest.update(chunk)
            newline = chunk.rfind(b"\n")
            if newline >= 0:
                lines += chunk.count(b"\n")
                end = position + newline + 1
                work.append(Work(source, start, end, number, end - start))
                start, number = end, 1 + lines
            position += len(chunk)
    if position > start:
        work.append(Work(source, start, position, number, position - start))
    return Surveyed({"name": source.name, "bytes": position, "sha256": digest.hexdigest()}, work)


def _cut_rows(source: Source, size: int, columns: Columns, most: int) -> list[Work]:
    """Cuts row groups into at most `most` rows; bytes are shared out by rows."""
    with _parquet(source.path) as file:
        schema = file.schema_arrow
        for column in filter(None, columns):
            if column not in schema.names:
                raise UserError(
                    f"{source.path} has no column {column!r}; {nearest(column, schema.names)}"
                )
        if str(schema.field(columns.text).type) not in ("string", "large_string", "string_view"):
            raise UserError(
                f"The column {columns.text!r} of {source.path} holds "
                f"{schema.field(columns.text).type}; give the column of the text."
            )
        groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    work: list[Work] = []
    first, total = 0, sum(groups)
    for group, rows in enumerate(groups):
        for start in range(first, first + rows, most):
            end = min(start + most, first + rows)
            share = size * end // total - size * start // total
            work.append(Work(source, start - first, end - first, start + 1, share, group))
        first += rows
    return work


def _parquet(path: Path) -> Any:
    """An open Parquet file.

    Raises:
      UserError: pyarrow is missing, or the file is no Parquet.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"Reading {path} needs the package pyarrow; install carve_jax with the extra parquet."
        ) from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as a Parquet file ({error}).") from error


def read_work(work: Work, columns: Columns) -> Iterator[Document]:
    """The documents of a piece of work: a whole text, or each line or row.

    Raises:
      UserError: a line that is not an object with the columns as strings, or a row without text.
    """
    path, name = work.source
    if work.documents:
        yield from work.documents
    elif path.suffix == ".jsonl":
        with path.open("rb") as file:
            file.seek(work.start)
            lines = file.read(work.end - work.start).split(b"\n")
        for number, line in enumerate(lines, work.number):
            if line.strip():
                yield _of_line(line, f"{name}:{number}", f"{path}:{number}", columns)
    elif path.suffix == ".parquet":
        yield from _read_rows(work, columns)
    else:
        yield Document(name, path.read_bytes())


def _of_line(line: bytes, name: str, where: str, columns: Columns) -> Document:
    try:
        values = json.loads(line)
        text = values[columns.text].encode()
        return Document(str(values[columns.name]) if columns.name else name, text)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        wanted = f'a string "{columns.text}"' + (f' and "{columns.name}"' if columns.name else "")
        raise UserError(f"{where} is not a JSON object with {wanted} ({error!r}).") from error


def _read_rows(work: Work, columns: Columns) -> Iterator[Document]:
    path, name = work.source
    wanted = [column for column in columns if column]
    with _parquet(path) as file:
        row = 0
        batches = file.iter_batches(row_groups=[work.group], columns=wanted)
        for batch in _readable(batches, path):
            # Batches need not end where work does.
            for index in range(max(0, work.start - row), min(len(batch), work.end - row)):
                number = work.number + row + index - work.start
                text = batch[columns.text][index].as_py()
                if text is None:
                    raise UserError(f"{path}: row {number} has no {columns.text!r}.")
                given = batch[columns.name][index].as_py() if columns.name else None
                yield Document(f"{name}:{number}" if given is None else str(given), text.encode())
            row += len(batch)
            if row >= work.end:
                return


def _readable(batches: Iterator[Any], path: Path) -> Iterator[Any]:
    import pyarrow

    try:
        yield from batches
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as a Parquet file ({error}).") from error
