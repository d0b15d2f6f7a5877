"""The table of tiles as a file: read, joined with new rows, and written."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from carve_jax.errors import UserError
from carve_jax.files import read_json, reason_of, shown, write_atomically
from pallas_kernels import tiling


def merge_rows(
    rows: Iterable[Mapping[str, Any]], found: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The table with new rows in place of those of the same device, dtype, width and kind.

    The first row that fits is the one that is used, so rows with longer device names come first,
    then narrower ones, then those for one kind of rule alone; rows for any device stay last and in
    their order.
    """

    def key(row: Mapping[str, Any]) -> tuple[str, str, int, bool, bool]:
        either = "content" not in row
        return row["device"], row["dtype"], row["width"], either, row.get("content", False)

    new = {key(row): dict(row) for row in found}
    kept = [dict(row) for row in rows if key(row) not in new]
    named = [row for row in [*kept, *new.values()] if row["device"]]
    named.sort(key=lambda row: (-len(row["device"]), *key(row)))
    return named + [row for row in [*kept, *new.values()] if not row["device"]]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of the table at `path`; those of the shipped one where there is none yet.

    Raises:
      UserError: it cannot be read, holds what is no row, or its folder does not exist.
    """
    mend = "correct it, or leave --table out"
    if not path.parent.is_dir():
        raise UserError(f"--table={path}: the folder {path.parent} does not exist")
    rows = read_json(path if path.exists() else tiling.TABLE, list, mend=mend)
    for number, row in enumerate(rows, 1):
        try:
            if not (isinstance(row["device"], str) and isinstance(row["dtype"], str)):
                raise ValueError("device and dtype are to be texts")
            if type(row["width"]) is not int or type(row.get("content", False)) is not bool:
                raise ValueError("width is to be a whole number, and content true or false")
            if not all(type(one) in (int, float) for one in row.get("capabilities", [])):
                raise ValueError("capabilities are to be numbers")
            tiles = dataclasses.asdict(tiling.Tiles(**row["tiles"]))
            for name, usual in dataclasses.asdict(tiling.Tiles()).items():
                if type(tiles[name]) is not type(usual) or (type(usual) is int and tiles[name] < 1):
                    raise ValueError(f"tiles.{name} is {shown(tiles[name])}")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = reason_of(error)
            raise UserError(f"--table={path}: row {number} is no row ({reason}): {mend}") from error
    return rows


def write_table(path: Path, found: Iterable[Mapping[str, Any]]) -> None:
    """Puts rows into the table at `path`, one per line; a new table begins as the shipped one."""
    rows = merge_rows(read_rows(path), found)
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    write_atomically(path, f"[\n{lines}\n]\n")
    tiling.read_table.cache_clear()
