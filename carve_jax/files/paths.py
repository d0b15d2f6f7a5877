"""Paths as people give them, and what the machine says of them in one sentence.

A path may be a bucket's, begin with `~`, be too long, lead nowhere, or name a pipe that is waited
for without end. Each is told with the path, the reason and what to do.
"""

import contextlib
import errno
import io
import itertools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from carve_jax.errors import UserError

LONGEST_SHOWN = 200  # characters of a value or reason in a message
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/")


def local_path(given: str | Path, flag: str) -> Path:
    """The path on this machine that was meant; `~` is expanded.

    Args:
      given: by the user.
      flag: that it was given by, for the message, such as `--output` or `data.path`.

    Raises:
      UserError: it is empty, a URL, holds a NUL character, or names a user that there is none of.
    """
    text = os.fspath(given)
    scheme = _URL.match(text)  # pathlib makes gs:// into a folder named gs:
    if scheme:
        raise UserError(
            f"{flag}={shown(text)} is no path of this machine: {scheme[1]}: is not supported; copy "
            "it here, or mount it, and give that path"
        )
    if not text or "\0" in text:
        raise UserError(f"{flag}={shown(text)} is no path: give one of this machine")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{flag}={shown(text)}: there is no such home directory") from None


def made_directory(given: str | Path, flag: str) -> Path:
    """The directory to write into that was meant, made unless it is there; `~` is expanded.

    Where it cannot be made, none above it stay that were made for it.

    Raises:
      UserError: it is no path of this machine (`local_path`), something else is in its place, or
        the system lets nobody make it or write there.
    """
    path = local_path(given, flag)
    _make(path, f"{flag}={shown_path(path)}")
    return path


def _make(path: Path, fault: str) -> None:
    if os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"{fault} is a file: give a directory, new or of an earlier run")
    for link in (path, *path.parents):
        if os.path.islink(link) and not os.path.exists(link):
            raise UserError(
                f"{fault}: {shown_path(link)} is a link to {shown(os.readlink(link))}, which is "
                "not there: mount or make that, or give another directory"
            )
    new = list(itertools.takewhile(lambda each: not os.path.lexists(each), (path, *path.parents)))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        for each in new:
            with contextlib.suppress(OSError):
                each.rmdir()
        raise UserError(
            f"{fault} cannot be made ({reason_of(error)}): give another directory"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{fault} cannot be written: make it writable, or give another directory")


def output_file(given: str | Path, flag: str = "--output") -> Path:
    """The file to write that was meant; the directory that it goes to is made, `~` is expanded.

    Raises:
      UserError: see `made_directory`; or there is something else than a file in its place, or the
        system allows no such name.
    """
    path = local_path(given, flag)
    with told(f"{flag}={shown_path(path)}", "give another file", failed="cannot be written"):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            mode = stat.S_IFREG
    if not stat.S_ISREG(mode):
        raise UserError(f"{flag}={shown_path(path)} is no file: give one, new or to be replaced")
    _make(path.parent, f"{flag}={shown_path(path)}: {shown_path(path.parent)}")
    return path


def shown_path(path: Path) -> str:
    """A path for a message: as it is where it can be printed, and never long."""
    text = str(path)
    if not text.isprintable():
        return shown(text)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def shown(value: object) -> str:
    """A value in quotes, such as a name from a file: never long, and printable everywhere."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def reason_of(error: BaseException) -> str:
    """Why something failed: one line, and never the document that it failed on."""
    if isinstance(error, UnicodeEncodeError):
        return "it holds half of a surrogate pair, which no file can be written with"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 from byte {error.start} on"
    strerror = error.strerror if isinstance(error, OSError) else None
    text = " ".join((strerror or str(error) or type(error).__name__).split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


@contextlib.contextmanager
def told(path: object, mend: str, *, failed: str = "cannot be read") -> Iterator[None]:
    """Makes what the machine refuses a UserError: the path, the reason, what to do.

    Args:
      path: what it is about.
      mend: what to do, as a clause.
      failed: what could not be done.

    Raises:
      UserError: for an OSError, or text that is not UTF-8, in the context.
    """
    try:
        yield
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path} {failed} ({reason_of(error)}): {mend}") from error


def open_regular(path: Path) -> io.BufferedReader:
    """A regular file, open for reading.

    A pipe or device in its place is refused, where `open` would wait for whoever writes to it.

    Raises:
      OSError: it cannot be read, or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return open(handle, "rb")
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(handle)
        raise
