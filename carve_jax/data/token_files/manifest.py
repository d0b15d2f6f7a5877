"""The manifest of a directory of token files: what they were made of, and how far that has come."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from carve_jax.data.token_files.shard_header import Header
from carve_jax.data.token_files.shard_writer import write_text
from carve_jax.errors import UserError
from carve_jax.files import inside, read_json, reason_of

FILE_NAME = "manifest.json"
FORMAT = "carve_jax manifest"
VERSION = 2
"""Version 1, which still reads, had no `check_sha256`."""
NO_MANIFEST = "it is not a manifest of token files; prepare the data again in another directory"


@dataclasses.dataclass
class Manifest:
    """What `experiments.prepare_data` writes, anew behind each pair of shards.

    Attributes:
      settings: what the shards depend on besides the sources.
      sources: name, bytes and SHA-256 of each.
      tokenizer_sha256: SHA-256 of the tokenizer's JSON.
      shards: documents, tokens, bytes and SHA-256 of each finished shard, by its name.
      position: where the next shards begin: a piece of work, and a document in it.
      done_bytes: of the sources, before the position.
      inexact: documents that a lossless tokenizer did not give back to the byte after all; any
        makes it one that is not.
      without: documents left out, for the tokenizer made no tokens of their text.
      complete: whether all sources are in the shards.
      check_sha256: of all that, for a digit that changes would lose documents without a word.
    """

    settings: dict[str, Any]
    sources: list[dict[str, Any]]
    tokenizer_sha256: str
    shards: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    position: tuple[int, int] = (0, 0)
    done_bytes: int = 0
    inexact: int = 0
    without: int = 0
    complete: bool = False
    format: str = FORMAT
    version: int = VERSION
    check_sha256: str = ""

    @classmethod
    def read(cls, directory: Path) -> "Manifest | None":
        """The manifest of a directory; None if it has none.

        Raises:
          UserError: there is one that cannot be read.
        """
        path = directory / FILE_NAME
        try:
            values = read_json(path, mend=NO_MANIFEST)
            if values.get("format") != FORMAT or values.get("version") not in (1, VERSION):
                raise ValueError("its format or version is unknown to this reader")
            manifest = cls(**values)
            manifest._check_values()
            if manifest.version == VERSION and manifest.check_sha256 != manifest._digest():
                raise ValueError("it was changed after it was written")
        except FileNotFoundError:
            return None
        except UserError:
            raise
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: {NO_MANIFEST} ({reason_of(error)})") from error
        for name in manifest.shards:
            inside(directory, name, path)
        manifest.version = VERSION
        return manifest

    def _check_values(self) -> None:
        """Raises ValueError for a value of another kind than is written."""
        place = self.position
        kinds = {
            "settings": isinstance(self.settings, dict),
            "sources": isinstance(self.sources, list),
            "shards": isinstance(self.shards, dict),
            "position": isinstance(place, (list, tuple)) and len(place) == 2,
            "done_bytes": type(self.done_bytes) is int,
            "inexact": type(self.inexact) is int,
            "without": type(self.without) is int,
            "complete": type(self.complete) is bool,
        }
        for name, right in kinds.items():
            if not right:
                raise ValueError(f"{name} is not what is written there")
        if not all(type(number) is int and number >= 0 for number in place):
            raise ValueError("position is not what is written there")
        self.position = place[0], place[1]

    def _digest(self) -> str:
        values = dataclasses.asdict(self) | {"check_sha256": ""}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Writes it: all of it or nothing.

        Raises:
          UserError: the disk is full.
        """
        self.check_sha256 = self._digest()
        write_text(directory / FILE_NAME, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def check(self, directory: Path, headers: dict[str, Header]) -> None:
        """Holds the shards of a directory against it.

        Raises:
          UserError: not all sources are in yet, or the shards are not those that were written.
        """
        if not self.complete:
            raise UserError(
                f"{directory} is half-written: {len(self.shards)} shards are there so far; run "
                "the same experiments.prepare_data again, and it goes on where they end."
            )
        for name in sorted(self.shards.keys() ^ headers.keys()):
            where = "is not there" if name in self.shards else f"is not in its {FILE_NAME}"
            raise UserError(
                f"The shard {name} of {directory} {where}; copy the directory again, or prepare "
                "the data again."
            )
        for name, header in headers.items():
            if shard_facts(header) != self.shards[name]:
                raise UserError(
                    f"The shard {name} of {directory} is not the one that {FILE_NAME} says; copy "
                    "the directory again, or prepare the data again."
                )


def shard_facts(header: Header) -> dict[str, Any]:
    """What a manifest says of a shard."""
    return {name: getattr(header, name) for name in ("documents", "tokens", "bytes", "sha256")}
