"""An Orbax item that knows its own bytes: CRC-32 of every file, checked before anything is read.

Orbax and its storage notice a missing or cut file, but restore a flipped bit inside an array's
data in silence.
"""

import dataclasses
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

FILE_NAME = "digests.json"
BLOCK = 1 << 20
THREADS = 8


class DigestedHandler(ocp.StandardCheckpointHandler):
    """Saves a tree of arrays as Orbax does, and a digest of each file beside them.

    The digests are written in the background, before the checkpoint gets its final name: a
    checkpoint that exists has them.
    """

    def finalize(self, directory: Any) -> None:
        """Completes the item, then reads its files once and notes their digests."""
        super().finalize(directory)
        (directory / FILE_NAME).write_text(json.dumps(digests(Path(directory))))


@ocp.args.register_with_handler(DigestedHandler, for_save=True)
@dataclasses.dataclass
class DigestedSave(ocp.args.StandardSave):
    """Save arguments of `DigestedHandler`."""


@ocp.args.register_with_handler(DigestedHandler, for_restore=True)
@dataclasses.dataclass
class DigestedRestore(ocp.args.StandardRestore):
    """Restore arguments of `DigestedHandler`."""


def verify_digests(directory: Path) -> None:
    """Checks every file of a saved item.

    Raises:
      ValueError: a file is not, to the bit, what was saved; names the first such file.
      OSError: the digests themselves are missing.
    """
    expected = json.loads((directory / FILE_NAME).read_text())
    found = digests(directory)
    for name, digest in expected.items():
        if name not in found:
            raise ValueError(f"file {name} is missing")
        if found[name] != digest:
            raise ValueError(f"file {name} is not what was saved")


def digests(directory: Path) -> dict[str, int]:
    """CRC-32 of every file below `directory`, by relative path, except the digests themselves."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != FILE_NAME)
    with ThreadPoolExecutor(THREADS) as pool:  # zlib leaves the interpreter to the others
        values = list(pool.map(crc32, files))
    return {str(file.relative_to(directory)): v for file, v in zip(files, values, strict=True)}


def crc32(path: Path) -> int:
    """CRC-32 of a file, read in blocks."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value
