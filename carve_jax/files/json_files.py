"""JSON that may have been damaged, or made to do damage: refused in a sentence, never a traceback.

`json.loads` alone fails in six ways on such text, and takes some of it: integers of thousands of
digits, nesting without end, halves of surrogate pairs that no file can be written with.
"""

import collections
import functools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from carve_jax.errors import UserError
from carve_jax.files.durable import LARGEST, read_regular, read_text
from carve_jax.files.paths import shown

DIGITS = 20  # of an integer; 64 bits have 19
LONGEST_REASON = 160
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Damaged(NamedTuple):
    """A line of a file of JSON lines that holds no object; `number` counts from 1."""

    number: int
    raw: bytes
    reason: str


def parse_json(text: str, *, digits: int = DIGITS, repeats: bool = False) -> Any:
    """The value of a JSON text.

    Args:
      text: JSON.
      digits: most of an integer.
      repeats: whether an object may give a name twice, of which the last counts.

    Raises:
      ValueError: the text is no JSON, or JSON that nothing here would write; says why, briefly.
    """
    try:
        value = json.loads(
            text,
            parse_int=functools.partial(_integer, digits),
            object_pairs_hook=None if repeats else _object,
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair") from None
    except json.JSONDecodeError as error:  # its own text may quote the whole document
        raise ValueError(
            f"no JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from None
    return value


def read_json(
    path: Path, kind: type = dict, *, mend: str = "restore it from a copy", largest: int = LARGEST
) -> Any:
    """The value in a JSON file.

    Args:
      kind: of the value: dict or list.
      mend: what to do where it does not read, as a clause.
      largest: bytes.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it cannot be read, or holds something else.
    """
    try:
        value = parse_json(read_text(path, largest))
    except FileNotFoundError:
        raise
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    else:
        if isinstance(value, kind):
            return value
        reason = f"it holds no {'object' if kind is dict else 'list'}"
    raise UserError(f"{path} cannot be read ({reason[:LONGEST_REASON]}): {mend}")


def read_json_lines(
    path: Path, largest: int = 1 << 30
) -> tuple[list[dict[str, Any]], list[Damaged]]:
    """The objects of a file of JSON lines, and the lines that hold none; a damaged line hides none.

    A last line without its end is one of the damaged, unless it is whole.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no regular file, or too large.
    """
    found: list[dict[str, Any]] = []
    damaged: list[Damaged] = []
    for number, raw in enumerate(read_regular(path, largest).split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            value = parse_json(raw.decode("utf-8"))
            if not isinstance(value, dict):
                raise ValueError("no object")
        except UnicodeDecodeError:
            damaged.append(Damaged(number, raw, "not UTF-8"))
        except ValueError as error:
            damaged.append(Damaged(number, raw, str(error)[:LONGEST_REASON]))
        else:
            found.append(value)
    return found, damaged


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it gives {shown(twice)} twice")
    return found


def _integer(most: int, digits: str) -> int:
    if len(digits.lstrip("-")) > most:
        raise ValueError(f"it holds an integer of {len(digits):,} digits")
    return int(digits)
