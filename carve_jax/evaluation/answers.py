"""Answers of a model that a task has had so far, in a file, so that a stop costs none of them.

One line of JSON each. The harness's own cache is a database of pickles, which run code when they
are read: whoever can write to a run directory could run it.
"""

import hashlib
import json
import zlib
from pathlib import Path
from typing import IO, Any

from carve_jax.errors import UserError
from carve_jax.files import read_json_lines, reason_of

# What an answer of each kind of request is.
KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
Answer = tuple[float, bool] | float | str


class Answers:
    """Answers by kind of request and its arguments; a damaged line is a question not answered.

    Args:
      path: of the file, made with the first answer; None keeps them nowhere.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._known: dict[str, Any] = {}
        if path is None:
            return
        try:
            lines, _ = read_json_lines(path)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({reason_of(error)}): remove it") from error
        for line in lines:
            key, answer = str(line.get("key")), line.get("answer")
            if line.get("crc32") == _crc32(path, key, answer):  # one digit is another figure
                self._known[key] = answer

    def find(self, kind: str, arguments: tuple) -> Answer | None:
        """The answer to a request, if there is one."""
        return _answer(kind, self._known.get(_key(kind, arguments)))

    def add(self, kind: str, arguments: tuple, answer: Answer) -> None:
        """Notes an answer, at once."""
        if self._path is None:
            return
        if self._file is None:
            self._file = self._path.open("a", buffering=1, encoding="utf-8")
            self._file.write("\n")  # a kill may have cut the last line off
        key = _key(kind, arguments)
        line = {"key": key, "answer": answer, "crc32": _crc32(self._path, key, answer)}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _key(kind: str, arguments: tuple) -> str:
    return hashlib.sha256(repr((kind, arguments)).encode("utf-8", "replace")).hexdigest()


def _crc32(path: Path, key: str, answer: Any) -> int:
    """Checksum of an answer in this file, whose name is made of the checkpoint and the settings."""
    return zlib.crc32(json.dumps([path.name, key, answer]).encode())


def _answer(kind: str, found: Any) -> Answer | None:
    """What was found, if it is an answer to that kind of request."""
    if kind == "loglikelihood":
        whole = isinstance(found, list) and [type(part) for part in found] == [float, bool]
        return tuple(found) if whole else None
    wanted = str if kind == "generate_until" else float
    return found if type(found) is wanted else None
