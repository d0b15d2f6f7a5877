"""Small files: read whole if they are files at all, written so that a power cut loses none.

All text is UTF-8, whatever the machine's locale.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LARGEST = 64 << 20  # bytes of a small file; more is refused before it is read


def read_regular(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a regular file.

    A FIFO or device in a file's place would be waited for without end, or never end.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no regular file, or of more than `largest` bytes.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError("it is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if found.st_size > largest:
        raise ValueError(f"it has {found.st_size:,} bytes, and at most {largest:,} are read")
    with path.open("rb") as file:
        return file.read(largest + 1)[:largest]


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The UTF-8 text of a regular file, line ends as they are.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no regular file, too large, or not UTF-8.
    """
    return read_regular(path, largest).decode("utf-8")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces `path` in one move: a reader, or a power cut, finds the old content or the new.

    Raises:
      OSError: the disk is full or the directory cannot be written; the old content stays.
    """
    temporary = _written_beside(path, content)
    try:
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into that replaces `path`, as `write_atomically` does, if the context ends
    well; else it is removed. For what is too large to be held at once.

    Raises:
      OSError: the disk is full or the directory cannot be written; the old content stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_new(path: Path, content: str | bytes) -> bool:
    """Writes a file unless it is there; of many processes one does, and nobody sees a half."""
    if path.exists():
        return False
    temporary = _written_beside(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    sync_directory(path.parent)
    return True


def _written_beside(path: Path, content: str | bytes) -> Path:
    """A file beside `path` that holds the content, on the disk and not only in its cache."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, content.encode("utf-8") if isinstance(content, str) else content)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file to the disk, and not only to its cache; not in one move."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Sees to it that names given in a directory outlive a power cut, where the system can."""
    # Without it the name itself may be lost. Not every system lets directories be synced.
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
