"""Parquet files: where their row groups are cut, and the documents of their rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carve_jax.data.sources.documents import Document
from carve_jax.errors import UserError
from carve_jax.files import open_regular, reason_of
from carve_jax.training.settings import nearest
from experiments.preparation.work import AGAIN, Columns, Source, Work, WorkSize, check_size

ROWS_AT_ONCE = 1024
MOST_ROWS = 1 << 32


def cut_rows(source: Source, size: int, columns: Columns, most: WorkSize) -> list[Work]:
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


def read_rows(work: Work, columns: Columns) -> Iterator[Document]:
    """The documents of the rows of a piece of work.

    Raises:
      UserError: a row without text, or a document that is too large, or a file that does not read.
    """
    path, name = work.source.path, work.source.name
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
                check_size(len(text), where, work.largest)
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
