"""Paths as people give them, and what the machine says of them in one sentence.

A path may be a bucket's, begin with `~`, be too long, lead nowhere, or name a pipe that is waited
for without end. Each is told with the path, the reason and what to do.
"""

import contextlib
import errno
import io
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
