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

from carve_jax.data.sources.documents import Document, fingerprint
from carve_jax.data.sources.stdlib import stdlib_documents
from carve_jax.errors import UserError
from carve_jax.files import local_path, open_regular, shown, told
from experiments.preparation.json_lines import document_of_line, survey_lines
from experiments.preparation.package_docs.made import COLUMNS, made_file
from experiments.preparation.parquet import cut_rows, read_rows
from experiments.preparation.work import (
    AGAIN,
    Columns,
    Source,
    Surveyed,
    Work,
    WorkSize,
    check_size,
)

LINES = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
SUFFIXES = (".txt", ".md", ".rst", *LINES, PARQUET)
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip", ".lz4", ".7z")
STDLIB, PACKAGE_DOCS = "stdlib", "package_docs"
STDLIB_PARTS = ("topics", "docstrings")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def list_sources(inputs: Sequence[str], *, say: Callable[[str], None] = _to_stderr) -> list[Source]:
    """The files meant by the inputs, in a fixed order.

    Args:
      inputs: files, directories, `stdlib` or `package_docs`.
      say: takes a line that says what is passed over in a directory.

    Raises:
      UserError: an input that does not exist, or is no text; a directory without text files.
    """
    sources: list[Source] = []
    for given in inputs:
        if given in (STDLIB, PACKAGE_DOCS):
            sources.append(Source(Path(given), given, given))
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
            what = "is no file, directory, 'stdlib' or 'package_docs'"
            if is_folder:
                what = f"holds no text files ({', '.join(SUFFIXES)})"
            raise UserError(f"--input names {shown(given)}, which {what}; {AGAIN}.")
        sources.extend(found)
    return [source._replace(name=_printable(source.name)) for source in sources]


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
    """Bytes of a source; what is built in is made for it.

    Raises:
      UserError: it cannot be read or made.
    """
    if source.built_in == STDLIB:
        return sum(len(document.text) for document in stdlib_documents(STDLIB_PARTS))
    if source.built_in == PACKAGE_DOCS:
        source = source._replace(path=made_file())
    with told(source.path, AGAIN):
        return source.path.stat().st_size


def survey(source: Source, columns: Columns, most: WorkSize) -> Surveyed:
    """Reads a source through once, for its digest and for where to cut it.

    Raises:
      UserError: an unknown column, a document that is too large, or a file that is no Parquet or
        cannot be read.
    """
    if source.built_in == STDLIB:
        documents = stdlib_documents(STDLIB_PARTS)
        size = source_bytes(source)
        facts = {"name": source.name, "bytes": size, "sha256": fingerprint(documents)}
        return Surveyed(facts, [Work(source, 0, len(documents), 1, size, documents=documents)])
    if source.built_in == PACKAGE_DOCS:
        source = source._replace(path=made_file())
    with told(source.path, AGAIN):
        if _suffix(source.path) in LINES:
            return survey_lines(source, most)
        with open_regular(source.path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    facts = {"name": source.name, "bytes": size, "sha256": digest}
    if _suffix(source.path) == PARQUET:
        return Surveyed(facts, cut_rows(source, size, columns, most))
    check_size(size, str(source.path), most.document)
    return Surveyed(facts, [Work(source, 0, size, 1, size, largest=most.document)])


def read_work(work: Work, columns: Columns) -> Iterator[Document]:
    """The documents of a piece of work: a whole text, or each line or row.

    Raises:
      UserError: a line that is not an object with the columns as strings, a row without text, a
        document that is too large, or a file that cannot be read.
    """
    path, name, built_in = work.source
    columns = COLUMNS if built_in == PACKAGE_DOCS else columns
    if work.documents:
        yield from work.documents
    elif _suffix(path) in LINES:
        for number, line in enumerate(_read(work).split(b"\n"), work.number):
            if line.strip():
                where = f"{path}:{number}"
                check_size(len(line), where, work.largest)
                yield document_of_line(line, f"{name}:{number}", where, columns)
    elif _suffix(path) == PARQUET:
        yield from read_rows(work, columns)
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
