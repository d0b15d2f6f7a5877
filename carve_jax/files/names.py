"""Names that a file gives of other files, and what files hold."""

import hashlib
import stat
from collections.abc import Iterable
from pathlib import Path

from carve_jax.errors import UserError


def inside(folder: Path, name: object, said_by: object) -> Path:
    """The path of a plain name in a folder.

    A name read from a file must not lead out of its folder: not by its parts, not by a link.

    Args:
      folder: where it belongs.
      name: as the file gives it.
      said_by: the file, for the message.

    Raises:
      UserError: it is no plain name, or a link that leads elsewhere.
    """
    # Letters that some system reads as a path, a drive, a pattern or the end of a name.
    plain = isinstance(name, str) and name not in ("", ".", "..")
    if not plain or any(c in '/\\:*?"<>|' or ord(c) < 32 or c == "\x7f" for c in str(name)):
        raise UserError(
            f"{said_by} names {str(name)[:80]!r}, which is no plain name: names in files stay in "
            "their folder; correct it"
        )
    path = folder / str(name)
    try:
        leaves = path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a link to itself, as Python 3.11 and 3.12 tell it
        raise UserError(
            f"{path} is a link that leads nowhere: put the file itself there"
        ) from error
    if leaves:
        raise UserError(f"{path} is a link that leads out of its folder: put the file itself there")
    return path


def digest_of(paths: Iterable[str | Path]) -> str:
    """SHA-256 (hexadecimal) of what files hold, and of their names below the folders given.

    A folder stands for all files below it but hidden ones. What is not there counts as absent.
    """
    total = hashlib.sha256()
    for given in map(Path, paths):
        files = _below(given) if given.is_dir() else [given]
        for path in files:
            name = path.relative_to(given).as_posix() if path != given else ""
            total.update(name.encode("utf-8", "surrogateescape") + b"\0")
            total.update(_file_digest(path))
    return total.hexdigest()


def _below(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p for p in found if not _hidden(p.relative_to(folder)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _file_digest(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b"no file"
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return b"absent"
