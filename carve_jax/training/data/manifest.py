"""The manifest of a directory of token files: what they were made of, and how far that has come."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from carve_jax.errors import UserError
from carve_jax.training.data.shard_header import Header
from carve_jax.training.data.shard_writer import write_text

FILE_NAME = "manifest.json"
FORMAT = "carve_jax manifest"
VERSION = 1


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
      complete: whether all sources are in the shards.
    """

    settings: dict[str, Any]
    sources: list[dict[str, Any]]
    tokenizer_sha256: str
    shards: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    position: tuple[int, int] = (0, 0)
    done_bytes: int = 0
    complete: bool = False
    format: str = FORMAT
    version: int = VERSION

    @classmethod
    def read(cls, directory: Path) -> "Manifest | None":
        """The manifest of a directory; None if it has none.

        Raises:
          UserError: there is one that cannot be read.
        """
        path = directory / FILE_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if (values["format"], values["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {values['format']!r} version {values['version']!r}")
            manifest = cls(**values)
            manifest.position = (int(values["position"][0]), int(values["position"][1]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"{path} is not a manifest of token files ({error!r}); prepare the data again in "
                "another directory."
            ) from error
        return manifest

    def write(self, directory: Path) -> None:
        """Writes it: all of it or nothing.

        Raises:
          UserError: the disk is full.
        """
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
