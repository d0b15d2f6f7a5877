"""JSON lines: where a file of them is cut, and the document of a line."""

import hashlib

from carve_jax.data.sources.documents import Document
from carve_jax.errors import UserError
from carve_jax.files import open_regular, parse_json, reason_of, shown
from experiments.preparation.work import Columns, Source, Surveyed, Work, WorkSize, check_size

DIGITS = 1000  # of an integer beside a text: hashes as numbers have dozens


def survey_lines(source: Source, most: WorkSize) -> Surveyed:
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
            check_size(size, f"{source.path}:{number}", most.document)
            if last >= 0:
                lines += chunk.count(b"\n")
                cut(position + last + 1)
                start, number = position + last + 1, 1 + lines
            position += len(chunk)
    if position > start:
        cut(position)
    return Surveyed({"name": source.name, "bytes": position, "sha256": digest.hexdigest()}, work)


def document_of_line(line: bytes, name: str, where: str, columns: Columns) -> Document:
    """The document of one line.

    Args:
      line: without its end.
      name: of the document, where no column holds one.
      where: the line is, in words.
      columns: of the text and of the name.

    Raises:
      UserError: it is no JSON object with the columns as strings.
    """
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
            f"{where} is not a JSON object with {wanted} ({why}): make each line one, or name the "
            "fields that there are with --text_column and --id_column"
        ) from error
