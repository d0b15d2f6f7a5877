"""What a kind of file is to the harness."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.damage import Example

Say = Callable[[str], None]
REPAIRED, OTHER = "repaired", "another"
OUTCOMES = ("right", REPAIRED, "refused", OTHER)
"""Right: as if nothing had happened. Repaired: right again, and said so or documented. Refused: one
sentence and exit code 2. Another: a file of its kind that nothing seals, such as a text with
another letter; `Kind.judge` has held the result against a second reading of that very file."""


class SilentChange(AssertionError):
    """A reader gave another value than the healthy file's, without a word."""


def sealed(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    """The judge of files under a checksum: no other value may come out of them."""
    raise SilentChange(f"another value without a word (said: {said})")


def any_value(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    """The judge of files whose content nothing here can know better, such as weights of others."""
    return OTHER


Judge = Callable[[Path, Any, Any, list[str]], str]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
      name: for the table.
      make: writes a healthy folder; of its two numbers, 1 gives another one, to swap files with.
      files: patterns of those to damage, in that folder.
      read: calls the readers as the commands do, with the folder and one that takes lines for the
        user; gives a plain value.
      reads: the functions, "module:name", that open these files; see `reads.py`.
      judge: what a value other than the healthy one's is; raises SilentChange.
      json: whether the files are JSON, or lines of it.
      code: whether they are code by design, which is run.
      reseal: makes checksums anew in a damaged folder.
      alone: whether a file is whole by itself, so that another healthy one in its place is that.
      share: of the examples of a kind that is cheap to read.
      examples: found by the harness, or by hand, and kept.
    """

    name: str
    make: Callable[[Path, int], None]
    files: tuple[str, ...]
    read: Callable[[Path, Say], Any]
    reads: tuple[str, ...]
    judge: Judge = sealed
    json: bool = False
    code: bool = False
    reseal: Callable[[Path], None] | None = None
    alone: bool = False
    share: float = 1.0
    examples: tuple[Example, ...] = ()


def plain(value: Any) -> Any:
    """A value that can be compared: arrays as their bytes, NaN equal to itself, 1 not to 1.0."""
    if isinstance(value, Mapping):
        return tuple(sorted(((repr(k), plain(v)) for k, v in value.items()), key=repr))
    if isinstance(value, (list, tuple)):
        return tuple(plain(part) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        return str(array.dtype), array.shape, array.tobytes()
    return repr(value)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal to the bit."""
    return plain(one) == plain(other)


def lines_of(path: Path) -> Iterable[bytes]:
    """A file's lines, for judges."""
    return path.read_bytes().split(b"\n")
