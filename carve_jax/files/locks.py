"""One process at a time: a locked file that says who holds it, and beats while they live.

The kernel's lock (`flock`) ends with its holder, however that dies, and is seen through most shared
storage. Some storage keeps such locks to one machine, or knows none; so the holder also writes its
name and a counter into the file. A lock that is free but names a process of another machine is
watched for a few beats: if the counter moves, its holder lives; if not, it is gone.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from carve_jax.errors import UserError
from carve_jax.files.json_files import parse_json

BEAT = 5.0  # seconds
BEATS = 4  # without one of these, a holder is gone
UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
Say = Callable[[str], None]


def try_lock(path: Path) -> IO[bytes] | None:
    """The locked file; None if a process holds it. Closing it, or dying, frees it.

    Storage that knows no locks gives none, and the file all the same.

    Raises:
      UserError: there is something else in the file's place.
      OSError: it cannot be made.
    """
    # No link is followed: what is written here would be written to whatever it leads to.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    except IsADirectoryError:
        raise UserError(f"{path} must be a plain file: remove it") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UserError(f"{path} must be a plain file: remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path} must be a plain file: remove it")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        if error.errno not in UNKNOWN:
            file.close()
            raise
    return file


@contextlib.contextmanager
def held(path: Path, what: str, *, say: Say = lambda line: None) -> Iterator[None]:
    """Holds a lock for the time of the context.

    Args:
      path: of the file, which stays.
      what: is locked, for messages, such as the directory.
      say: takes one line where the holder's life must be waited for.

    Raises:
      UserError: another process holds it.
    """
    file = try_lock(path)
    if file is None:
        raise _in_use(what, _note(path))
    with file:
        before = _note(path)
        if before and before.get("machine") != machine():
            _wait_for_its_end(path, what, before, say)
        mine = {**_who(), "token": secrets.token_hex(8)}
        _write(file, mine, 0)
        if (_note(path) or {}).get("token") != mine["token"]:  # on storage without locks
            raise _in_use(what, _note(path))
        over = threading.Event()
        beats = threading.Thread(target=_beat, args=(file, mine, over), daemon=True)
        beats.start()
        try:
            yield
        finally:
            over.set()
            beats.join()
            with contextlib.suppress(OSError):  # of a directory that is gone, or a full disk
                os.ftruncate(file.fileno(), 0)


def machine() -> str:
    """This start of this machine's kernel; containers of one kernel share it, and its locks."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()


def _who() -> dict[str, Any]:
    job = next((f"{name}={os.environ[name]}" for name in JOBS if os.environ.get(name)), None)
    return {
        "machine": machine(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": job,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _in_use(what: str, note: dict[str, Any] | None) -> UserError:
    holder = "another process"
    if note:
        job = f", {note['job']}" if note.get("job") else ""
        holder = f"process {note.get('pid')} on {note.get('host')}{job} (since {note.get('since')})"
    return UserError(
        f"{what} is in use by {holder[:200]}: wait for its end or stop it, or give another "
        "--workdir"
    )


def _wait_for_its_end(path: Path, what: str, before: dict[str, Any], say: Say) -> None:
    seconds = BEAT * BEATS
    say(
        f"{what} was not left by process {before.get('pid')} on {before.get('host')}: looking for "
        f"{seconds:.0f} s whether it still runs"
    )
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(BEAT / 4)
        now = _note(path)
        if now is None:
            return
        if now != before:
            raise _in_use(what, now)


def _note(path: Path) -> dict[str, Any] | None:
    """What the holder wrote; None of one that has ended, or of a damaged note."""
    try:
        with path.open("rb") as file:  # opened anew, or shared storage may show what it showed
            found = parse_json(file.read(4096).decode("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(file: IO[bytes], note: dict[str, Any], count: int) -> None:
    text = (json.dumps({**note, "beat": f"{count:012d}"}) + "\n").encode()  # always as long
    os.ftruncate(file.fileno(), len(text))
    os.pwrite(file.fileno(), text, 0)
    os.fsync(file.fileno())


def _beat(file: IO[bytes], note: dict[str, Any], over: threading.Event) -> None:
    count = 0
    while not over.wait(BEAT):
        count += 1
        with contextlib.suppress(OSError):  # a full disk is told elsewhere
            _write(file, note, count)
