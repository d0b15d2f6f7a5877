"""Where prepare_data finds text: files of text, JSON lines or Parquet, cut into pieces of work.

A piece of work is a part of one file, small enough to be read at once, and knows the numbers of its
lines or rows: which pieces there are, and what their documents are called, depends on the files
alone.
"""

import collections
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from carve_jax.data.sources.documents import Document, fingerprint
from carve_jax.data.sources.stdlib import stdlib_documents
from carve_jax.errors import UserError
from carve_jax.files import local_path, open_regular, parse_json, reason_of, shown, told
from carve_jax.training.settings import nearest

LINES = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
SUFFIXES = (".txt", ".md", ".rst", *LINES, PARQUET)
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip", ".lz4", ".7z")
STDLIB_PARTS = ("topics", "docstrings")
LARGEST_DOCUMENT = 64 << 20
DIGITS = 1000  # of an integer beside a text: hashes as numbers have dozens
ROWS_AT_ONCE = 1024
MOST_ROWS = 1 << 32
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
    """A file, and what its documents are named after; the path `stdlib` is Python's own text."""

    path: Path
    name: str


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


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def list_sources(inputs: Sequence[str], *, say: Callable[[str], None] = _to_stderr) -> list[Source]:
    """The files meant by the inputs, in a fixed order.

    Args:
      inputs: files, directories, or `stdlib`.
      say: takes a line that says what is passed over in a directory.

    Raises:
      UserError: an input that does not exist, or is no text; a directory without text files.
    """
    sources: list[Source] = []
    for given in inputs:
        if given == "stdlib":
            sources.append(Source(Path(given), given))
            continue
        path = local_path(given, "--input")
        with told(f"--input={shown(given)}", "correct it"):
            is_file, is_folder = path.is_file(), path.is_dir()
            found = [Source(path, path.name)] if is_file else []
            if is_folder:
                found = _below(path, given, say)
        if is_file and _suffix(path) in COMPRESSED:
            raise UserError(
                f"--input names {shown(given)}, which is compressed; unpack it, or convert it to "
                "Parquet, first."
            )
        if not found:
            what = "holds no text files" if is_folder else "is no file, directory or 'stdlib'"
            allowed = f" ({', '.join(SUFFIXES)})" if is_folder else ""
            raise UserError(f"--input names {shown(given)}, which {what}{allowed}; {AGAIN}.")
        sources.extend(found)
    return [Source(path, _printable(name)) for path, name in sources]


def _below(folder: Path, given: str, say: Callable[[str], None]) -> list[Source]:
    """The files of text below a folder; what else lies there is said, but for what is hidden."""
    found, other = [], collections.Counter[str]()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir():
            continue
        if _suffix(path) in SUFFIXES and path.is_file():
            found.append(Source(path, name.as_posix()))
        elif not any(part.startswith(".") for part in name.parts):
            last = "".join(path.suffixes[-2:]) if _suffix(path) in COMPRESSED else path.suffix
            other[_printable(last) or "without suffix"] += 1
    if other:
        kinds = ", ".join(f"{count} {kind}" for kind, count in other.most_common(6))
        more = ", …" if len(other) > 6 else ""
        say(
            f"{_printable(given)}: passed over are {kinds}{more}; read are {', '.join(SUFFIXES)}, "
            "and nothing compressed: unpack what is meant"
        )
    return found


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _printable(name: str) -> str:
    """A name as UTF-8 can hold it: bytes of a file name that are not UTF-8 are spelled out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def source_bytes(source: Source) -> int:
    """Bytes of a source."""
    if source.name == "stdlib":
        return sum(len(document.text) for document in stdlib_documents(STDLIB_PARTS))
    with told(source.path, AGAIN):
        return source.path.stat().st_size


def survey(source: Source, columns: Columns, most: WorkSize) -> Surveyed:
    """Reads a source through once, for its digest and for where to cut it.

    Raises:
      UserError: an unknown column, a document that is too large, or a file that is no Parquet or
        cannot be read.
    """
    if source.name == "stdlib":
        documents = stdlib_documents(STDLIB_PARTS)
        size = source_bytes(source)
        facts = {"name": source.name, "bytes": size, "sha256": fingerprint(documents)}
        return Surveyed(facts, [Work(source, 0, len(documents), 1, size, documents=documents)])
    with told(source.path, AGAIN):
        if _suffix(source.path) in LINES:
            return _survey_lines(source, most)
        with open_regular(source.path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    facts = {"name": source.name, "bytes": size, "sha256": digest}
    if _suffix(source.path) == PARQUET:
        return Surveyed(facts, _cut_rows(source, size, columns, most))
    _check_size(size, str(source.path), most.document)
    return Surveyed(facts, [Work(source, 0, size, 1, size, largest=most.document)])


def _survey_lines(source: Source, most: WorkSize) -> Surveyed:
    """Cuts behind the last line that ends in each `most.bytes`, or later where a line is longer."""
    digest = hashlib.sha256()
    work: list[Work] = []
    start, position, number, lines = 0, 0, 1, 0

    def cut(end: int) -> None:
        work.append(Work(source, start, end, number, end - start, largest=most.document))

    with open_regular(source.path) as file:
        while chunk := file.read(most.bytes):
            digest.update(chunk)
            first, last = chunk.find(b"\n"), chunk.rfind(b"\n")
            # Of a line that reaches into this chunk; those within it are seen when they are read.
            size = position + (first if first >= 0 else len(chunk)) - start
            _check_size(size, f"{source.path}:{number}", most.document)
            if last >= 0:
                lines += chunk.count(b"\n")
                cut(position + last + 1)
                start, number = position + last + 1, 1 + lines
            position += len(chunk)
    if position > start:
        cut(position)
    return Surveyed({"name": source.name, "bytes": position, "sha256": digest.hexdigest()}, work)


def _check_size(size: int, where: str, largest: int) -> None:
    """Raises UserError for a document that would take too much memory."""
    if size > largest:
        raise UserError(
            f"{where} is a document of {size:,} bytes or more, and at most {largest:,} are read, "
            "for memory's sake: cut it into documents, or give a larger --largest_document"
        )


def _cut_rows(source: Source, size: int, columns: Columns, most: WorkSize) -> list[Work]:
    """Cuts row groups into at most `most.rows` rows; bytes are shared out by rows."""
    with _parquet(source.path) as file:
        schema = file.schema_arrow
        for column in filter(None, columns):
            if schema.names.count(column) != 1:
                has = "more than one" if column in schema.names else "no"
                hint = "rename them" if column in schema.names else nearest(column, schema.names)
                raise UserError(f"{source.path} has {has} column {column!r}; {hint}")
        if str(schema.field(columns.text).type) not in ("string", "large_string", "string_view"):
            raise UserError(
                f"The column {columns.text!r} of {source.path} holds "
                f"{schema.field(columns.text).type}; give the column of the text."
            )
        groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    work: list[Work] = []
    first, total = 0, sum(groups)
    if not 0 <= total <= MOST_ROWS or min(groups, default=0) < 0:
        raise UserError(f"{source.path} says that it has {total:,} rows: it is damaged; {AGAIN}.")
    for group, rows in enumerate(groups):
        for start in range(first, first + rows, most.rows):
            end = min(start + most.rows, first + rows)
            share = size * end // total - size * start // total
            place = start - first, end - first, start + 1
            work.append(Work(source, *place, share, group, largest=most.document))
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
        open_regular(path).close()
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a Parquet file ({reason_of(error)}); {AGAIN}."
        ) from error


def read_work(work: Work, columns: Columns) -> Iterator[Document]:
    """The documents of a piece of work: a whole text, or each line or row.

    Raises:
      UserError: a line that is not an object with the columns as strings, a row without text, a
        document that is too large, or a file that cannot be read.
    """
    path, name = work.source
    if work.documents:
        yield from work.documents
    elif _suffix(path) in LINES:
        for number, line in enumerate(_read(work).split(b"\n"), work.number):
            if line.strip():
                where = f"{path}:{number}"
                _check_size(len(line), where, work.largest)
                yield _of_line(line, f"{name}:{number}", where, columns)
    elif _suffix(path) == PARQUET:
        yield from _read_rows(work, columns)
    else:
        yield Document(name, _read(work))


def _read(work: Work) -> bytes:
    """The bytes of a piece of work; UserError if they are no longer there."""
    with told(work.source.path, AGAIN), open_regular(work.source.path) as file:
        file.seek(work.start)
        found = file.read(work.end - work.start)
    if len(found) != work.end - work.start:
        raise UserError(f"{work.source.path} became shorter while it was read: run again")
    return found


def _of_line(line: bytes, name: str, where: str, columns: Columns) -> Document:
    try:
        if line.startswith(b"\xef\xbb\xbf"):  # how some editors begin a file
            line = line[3:]
        values = parse_json(line.decode("utf-8"), digits=DIGITS, repeats=True)
        if not isinstance(values, dict):
            raise ValueError("it is something else")
        if not isinstance(values[columns.text], str):
            raise ValueError(f"its {shown(columns.text)} is no string")
        text = values[columns.text].encode("utf-8")
        given = values[columns.name] if columns.name else None
        return Document(name if given is None else str(given), text)
    except (ValueError, KeyError) as error:
        wanted = f'a string "{columns.text}"' + (f' and "{columns.name}"' if columns.name else "")
        why = f"it has no {error}" if isinstance(error, KeyError) else reason_of(error)
        raise UserError(
            f"{where} is not a JSON object with {wanted} ({why}): each line is to be one"
        ) from error


def _read_rows(work: Work, columns: Columns) -> Iterator[Document]:
    path, name = work.source
    wanted = [column for column in columns if column]
    with _parquet(path) as file:
        row = 0
        batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[work.group], columns=wanted)
        for batch in _readable(batches, path):
            # Batches need not end where work does.
            for index in range(max(0, work.start - row), min(len(batch), work.end - row)):
                number = work.number + row + index - work.start
                where = f"{path}: row {number}"
                text, given = (_value(batch, column, index, where) for column in columns)
                if text is None:
                    raise UserError(f"{where} has no {columns.text!r}.")
                _check_size(len(text), where, work.largest)
                named = f"{name}:{number}" if given is None else str(given)
                yield Document(named, text.encode("utf-8"))
            row += len(batch)
            if row >= work.end:
                return


def _value(batch: Any, column: str, index: int, where: str) -> Any:
    """What a column holds in a row; None where it holds nothing, or is not wanted."""
    try:
        return batch[column][index].as_py() if column else None
    except (ValueError, OverflowError) as error:  # of text that is not UTF-8, dates out of range
        raise UserError(f"{where} has no {column!r} that reads ({reason_of(error)}).") from error


def _readable(batches: Iterator[Any], path: Path) -> Iterator[Any]:
    import pyarrow

    try:
        yield from batches
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a Parquet file ({reason_of(error)}); {AGAIN}."
        ) from error
