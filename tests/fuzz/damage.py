"""Damages to a file: short values, so that one that was found can be kept as an example."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

LARGE = 1 << 24
_MARK = "\x01here\x01"
# Runs a command when it is unpickled: such bytes in any file's place must stay bytes.
PICKLE = b"cos\nsystem\n(S'touch unpickled'\ntR."
PIECES = {
    "mark of UTF-8": b"\xef\xbb\xbf",
    "mark of UTF-16": b"\xff\xfe",
    "no UTF-8": b"\xff\x80\xc3",
    "half a pair": b"\xed\xa0\x80",
    "zeros": b"\0" * 64,
    "line end": b"\n",
    "carriage return": b"\r\n",
    "white space": b"  \n",
    "letters": b"garbage",
    "brace": b"}",
    "object": b'{"step": 3}\n',
    "pickle": PICKLE,
    "python": b"__import__('os').system('touch unpickled')\n",
}
# JSON, in place of a value or a whole document. OUTSIDE is a file beside the folder.
VALUES = {
    **{text: text for text in ("null", "true", "0", "-1", "1.5", "[]", "{}", '""', '"text"')},
    **{text: text for text in ("NaN", "Infinity", "-Infinity", "1e999", "-0.0", "5e-324")},
    **{text: text for text in ("[null]", '{"a": 1}', "[1, 2]", '"1"', "[[]]", "2.0", "1")},
    "2**53 + 1": str(2**53 + 1),
    "2**31": str(2**31),
    "2**63": str(2**63),
    "5,000 digits": "1" * 5000,
    "deep list": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "half a pair": '"\\ud800"',
    "nul": '"\\u0000"',
    "new line": '"a\\nb"',
    "long text": '"' + "x" * 100_000 + '"',
    "up": '"../secret"',
    "up and down": '"a/../../secret"',
    "absolute": '"OUTSIDE"',
    "address": '"gs://bucket/x"',
    "home": '"~/x"',
}


class Damage(NamedTuple):
    """One damage: its kind, where (taken modulo what there is), and with what."""

    how: str
    at: int = 0
    what: str = ""


class Example(NamedTuple):
    """What is done to a healthy folder: damages, each with the number of its file.

    Attributes:
      sealed: checksums that the kind knows are made anew, as by somebody who means harm.
    """

    damages: tuple[tuple[int, Damage], ...]
    sealed: bool = False


def kept(how: str, at: int = 0, what: str = "", file: int = 0) -> Example:
    """An example of one damage that a reader once did not take."""
    return Example(((file, Damage(how, at, what)),))


HANGS = (kept("pipe"), kept("endless device"), kept("link to itself"))


def _lines(content: bytes, at: int, change: Callable[[bytes], list[bytes]]) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    index = at % len(lines)
    return b"".join([*lines[:index], *change(lines[index]), *lines[index + 1 :]])


def _flip(content: bytes, at: int) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    changed[at // 8 % len(changed)] ^= 1 << at % 8
    return bytes(changed)


def _place(content: bytes, at: int) -> int:
    return at % (len(content) + 1)


BYTES: dict[str, Callable[[bytes, int, bytes], bytes]] = {
    "cut": lambda content, at, _: content[: _place(content, at)],
    "cut before": lambda content, at, _: content[_place(content, at) :],
    "flip": lambda content, at, _: _flip(content, at),
    "empty": lambda content, at, _: b"",
    "zero": lambda content, at, _: content[: _place(content, at)].ljust(len(content), b"\0"),
    "append": lambda content, at, piece: content + piece,
    "begin with": lambda content, at, piece: piece + content,
    "insert": lambda content, at, piece: (
        content[: _place(content, at)] + piece + content[_place(content, at) :]
    ),
    "only": lambda content, at, piece: piece,
    "double": lambda content, at, _: content + content,
    "double line": lambda content, at, _: _lines(content, at, lambda line: [line, line]),
    "drop line": lambda content, at, _: _lines(content, at, lambda line: []),
    "UTF-16": lambda content, at, _: content.decode("latin-1").encode("utf-16"),
}


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from _nodes(inner, (*path, key))


def _documents(content: bytes) -> list[Any]:
    """The JSON of a file, or of each of its lines; [] if it is neither."""
    for parts in ([content], content.splitlines()):
        try:
            return [json.loads(part) for part in parts]
        except (ValueError, RecursionError):
            continue
    return []


def _changed_node(content: bytes, damage: Damage, raw: str) -> bytes:
    """The file with one value of its JSON replaced, named twice, or without it."""
    documents = _documents(content)
    if not documents:
        return content
    places = [(n, path) for n, value in enumerate(documents) for path in _nodes(value)]
    number, path = places[damage.at % len(places)]
    if not path:
        documents[number] = _MARK
    else:
        holder = documents[number]
        for key in path[:-1]:
            holder = holder[key]
        if damage.how == "without":
            del holder[path[-1]]
        elif damage.how == "twice" and isinstance(holder, dict):
            raw = f"{json.dumps(holder[path[-1]])}, {json.dumps(path[-1])}: {raw}"
            holder[path[-1]] = _MARK
        else:
            holder[path[-1]] = _MARK
    text = "\n".join(json.dumps(document) for document in documents) + "\n"
    return text.replace(json.dumps(_MARK), raw).encode()


JSON = ("value", "twice", "without")


def _as_what(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _elsewhere(path: Path, outside: Path) -> None:
    shutil.move(path, outside.with_name(f"moved_{path.name}"))
    path.symlink_to(outside.with_name(f"moved_{path.name}"))


PLACES: dict[str, Callable[[Path, Path], None]] = {
    "gone": lambda path, _: path.unlink(),
    "folder": lambda path, _: (path.unlink(), path.mkdir()),  # type: ignore[dict-item,func-returns-value]
    "pipe": lambda path, _: (path.unlink(), os.mkfifo(path)),  # type: ignore[dict-item,func-returns-value]
    "link to nothing": lambda path, _: _as_what(path, "nothing"),
    "link to itself": lambda path, _: _as_what(path, path.name),
    "endless device": lambda path, _: _as_what(path, "/dev/zero"),
    "empty device": lambda path, _: _as_what(path, "/dev/null"),
    "link to a whole file": _elsewhere,
}


def apply(damage: Damage, path: Path, twin: Path, outside: Path) -> None:
    """Damages one file.

    Args:
      path: of the file, which an earlier damage may have taken away.
      twin: the file of the same name in another healthy folder.
      outside: a file beside the folder, for names that lead there.
    """
    if not path.is_file() or path.is_symlink():
        return
    if damage.how in PLACES:
        PLACES[damage.how](path, outside)
    elif damage.how == "swap":
        if twin.is_file():
            shutil.copyfile(twin, path)
    elif damage.how in JSON:
        raw = VALUES.get(damage.what, "null").replace("OUTSIDE", str(outside))
        path.write_bytes(_changed_node(path.read_bytes(), damage, raw))
    else:
        piece = PIECES.get(damage.what, b"")
        path.write_bytes(BYTES[damage.how](path.read_bytes(), damage.at, piece))


def examples(files: int, *, json: bool, sealed: bool, code: bool) -> st.SearchStrategy[Example]:
    """Strategy of examples.

    Args:
      files: that may be damaged.
      json: whether they are JSON, or lines of it.
      sealed: whether the kind can make checksums anew.
      code: whether the files are code, into which none is put.
    """
    pieces = sorted(PIECES.keys() - ({"python"} if code else set()))
    at = st.one_of(st.integers(0, 64), st.integers(0, LARGE))
    whole = ("empty", "double", "UTF-16")
    places = st.builds(Damage, st.sampled_from((*PLACES, "swap", *whole)))
    cuts = ("cut", "cut before", "flip", "zero", "double line", "drop line")
    cut = st.builds(Damage, st.sampled_from(cuts), at)
    put = st.builds(
        Damage, st.sampled_from(("append", "begin with", "insert", "only")), at,
        st.sampled_from(pieces),
    )  # fmt: skip
    ways = [places, cut, put]
    if json:
        ways += [st.builds(Damage, st.sampled_from(JSON), at, st.sampled_from(sorted(VALUES)))] * 3
    one = st.tuples(st.integers(0, files - 1), st.one_of(ways))
    several = st.one_of(st.tuples(one), st.tuples(one), st.tuples(one, one))
    return st.builds(Example, several, st.booleans() if sealed else st.just(False))
