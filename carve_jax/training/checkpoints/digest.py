"""The seal of a checkpoint: what was saved together is used together, to the bit, or not at all.

Orbax and its storage notice a missing or cut file, but restore a flipped bit inside an array's
data in silence, and an array of another step, and a folder under another step's name. Here the
state's folder keeps the CRC-32 of each of its files (`digests.json`), and `seal.json` binds those
to the step, the data position and the description (config included) by one SHA-256.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from carve_jax.files import parse_json, read_regular, write_atomically

FORMAT = 2
"""The format of checkpoints. Format 1, which can still be read, had no seal."""
FILE_NAME = "digests.json"
SEAL = "seal.json"
BLOCK = 1 << 20
THREADS = 8


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a state belongs to.

    Attributes:
      step: its step.
      meta: the text of the description beside it.
      position: the text of the data position beside it.
    """

    step: int
    meta: str
    position: str

    def sealed(self, digests_text: bytes) -> dict[str, Any]:
        """What `seal.json` says of these and the digests of a state's files."""
        parts = {
            "format": FORMAT,
            "step": self.step,
            "meta": hashlib.sha256(self.meta.encode()).hexdigest(),
            "data": hashlib.sha256(self.position.encode()).hexdigest(),
            "state": hashlib.sha256(digests_text).hexdigest(),
        }
        text = json.dumps(parts, sort_keys=True)
        return {**parts, "seal": hashlib.sha256(text.encode()).hexdigest()}


class DigestedHandler(ocp.StandardCheckpointHandler):
    """Saves a tree of arrays as Orbax does, and digests and seal beside them.

    They are written in the background, before the checkpoint gets its final name: a checkpoint
    that exists has them.
    """

    _bound: Bound

    async def async_save(self, directory: Any, *positional: Any, **named: Any) -> Any:
        """Starts a save; its arguments are a `DigestedSave`."""
        self._bound = named["args"].bound
        return await super().async_save(directory, *positional, **named)

    def finalize(self, directory: Any) -> None:
        """Completes the item, reads its files once, and seals it."""
        super().finalize(directory)
        folder = Path(directory)
        text = json.dumps(digests(folder, sync=True))
        # By Orbax's own path, as all of it is: its failures are told as those of a save.
        (directory / FILE_NAME).write_text(text, encoding="utf-8")
        write_atomically(folder / SEAL, json.dumps(self._bound.sealed(text.encode()), indent=2))


@ocp.args.register_with_handler(DigestedHandler, for_save=True)
@dataclasses.dataclass
class DigestedSave(ocp.args.StandardSave):
    """Save arguments of `DigestedHandler`: a state, and what it belongs to."""

    bound: Bound | None = None


@ocp.args.register_with_handler(DigestedHandler, for_restore=True)
@dataclasses.dataclass
class DigestedRestore(ocp.args.StandardRestore):
    """Restore arguments of `DigestedHandler`."""


def described(body: str, position: str) -> dict[str, Any]:
    """The item `meta` of a checkpoint: its text, and what reads before it is known to be whole."""
    return {
        "format": FORMAT,
        "written_by": writer(),
        "meta": body,
        "meta_crc32": zlib.crc32(body.encode()),
        "data_crc32": zlib.crc32(position.encode()),
    }


@functools.cache
def writer() -> str:
    """This program, for those who cannot read what it wrote."""
    found = []
    for name in ("carve_jax", "orbax-checkpoint", "jax"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from a checkout
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def verify_state(directory: Path, bound: Bound, *, sealed: bool) -> str:
    """Checks every file of a saved state, and that it belongs to what lies beside it.

    Args:
      directory: of the state.
      bound: what is found beside it.
      sealed: whether there must be a seal; one that is there must be right in any case.

    Returns:
      The seal, SHA-256: no other checkpoint has it.

    Raises:
      ValueError: something is not, to the bit, what was saved together; says what.
      OSError: the digests themselves are missing.
    """
    text = read_regular(directory / FILE_NAME)
    expected = parse_json(text.decode("utf-8"))
    right = bound.sealed(text)
    if sealed or (directory / SEAL).exists():
        _check_seal(parse_json(read_regular(directory / SEAL).decode("utf-8")), right)
    if not isinstance(expected, dict) or not expected:
        raise ValueError(f"{FILE_NAME} names no file")
    found = digests(directory)
    for name, digest in expected.items():
        if name not in found:
            raise ValueError(f"file {name} is missing")
        if found[name] != digest:
            raise ValueError(f"file {name} is not what was saved")
    return right["seal"]


def _check_seal(found: Any, right: dict[str, Any]) -> None:
    if not isinstance(found, dict):
        raise ValueError("its seal is damaged")
    what = {
        "step": f"its state was saved as step {found.get('step')}",
        "meta": "its state was saved with another description",
        "data": "its state was saved with another data position",
        "state": f"its {FILE_NAME} is not what was saved",
    }
    for part, reason in what.items():
        if found.get(part) != right[part]:
            raise ValueError(reason)
    if found != right:
        raise ValueError("its seal is damaged")


def digests(directory: Path, *, sync: bool = False) -> dict[str, int]:
    """CRC-32 of every file below `directory`, by relative path, except digests and seal.

    Args:
      directory: the folder.
      sync: see to it that the files are on the disk, and not only in its cache.
    """
    own = (directory / FILE_NAME, directory / SEAL)
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p not in own)
    with ThreadPoolExecutor(THREADS) as pool:  # zlib leaves the interpreter to the others
        values = list(pool.map(lambda path: crc32(path, sync=sync), files))
    return {str(file.relative_to(directory)): v for file, v in zip(files, values, strict=True)}


def crc32(path: Path, *, sync: bool = False) -> int:
    """CRC-32 of a file, read in blocks."""
    value = 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value
