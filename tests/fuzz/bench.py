"""Tries damages on a kind, one after another, in a folder of its own."""

import collections
import contextlib
import faulthandler
import io
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from experiments import cli
from tests.fuzz.damage import Example, apply
from tests.fuzz.kind import OTHER, REPAIRED, Kind, SilentChange, plain

SECONDS = 10  # that a reader may take
MEMORY = 4 << 30  # bytes more than before; an endless device is to be noticed early
LONGEST = 900  # characters of a sentence, its paths not counted
SECRET = "words of a file outside"
# What no reader has a reason for. Python tells of them wherever they are done.
CODE = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
)


class Hang(BaseException):
    """A reader took too long."""


class Ran(BaseException):
    """A reader ran, or was about to run, what a file says; or opened a file that one names."""


class Watch:
    """Sees to what happens while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.outside = ""
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in CODE:
            self.seen.append(event)
            raise Ran(event)
        if event == "open" and str(arguments[0]) == self.outside:
            self.seen.append(f"open {arguments[0]}")
            raise Ran(f"opened {arguments[0]}")


_WATCH: list[Watch] = []  # audit hooks stay for good: one is enough


def _unpickles(*_: Any, **__: Any) -> None:
    _WATCH[0].seen.append("pickle")
    raise Ran("unpickled")


def _mapped() -> int:
    """Bytes of address space that this process has; 2 TB where the system does not say."""
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
    return 1 << 41


@contextlib.contextmanager
def guarded(outside: Path) -> Iterator[None]:
    """No code, no file outside, no endless wait; nothing is synced, which takes too long."""
    if not _WATCH:
        _WATCH.append(Watch())
    watch = _WATCH[0]
    watch.outside, watch.seen = str(outside), []

    def late(*_: Any) -> None:
        raise Hang(f"after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_mapped() + MEMORY, limits[1]))
    names = dict.fromkeys(("load", "loads", "Unpickler", "_Unpickler"), _unpickles)
    with mock.patch.multiple(pickle, **names), mock.patch.object(os, "fsync"):
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # of what hears no signal
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        watch.on = True
        try:
            yield
        finally:
            watch.on = False
            resource.setrlimit(resource.RLIMIT_AS, limits)
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, before)
    if watch.seen:  # even if the reader went on
        raise Ran(", ".join(watch.seen))


class Bench:
    """A kind's healthy folder, another one, and the folder in which files are damaged.

    Args:
      kind: of file.
      root: an empty folder.
    """

    def __init__(self, kind: Kind, root: Path) -> None:
        self.kind = kind
        self.counts: collections.Counter[str] = collections.Counter()
        self._root = root
        self._work, self._outside = root / "room" / "work", root / "room" / "secret"
        for name, number in (("twin", 1), ("healthy", 0)):
            shutil.rmtree(self._work.parent, ignore_errors=True)
            self._work.mkdir(parents=True)
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                kind.make(self._work, number)
            self._work.rename(root / name)
        self.files = sorted({p for pattern in kind.files for p in self._found(pattern)})
        assert self.files, f"{kind.name}: no file is called {kind.files}"
        self.fresh()
        self._always: list[str] = []  # lines said of a healthy folder too
        self.healthy, self._always, code, told = self.read()
        assert code == 0, told
        self._healthy = plain(self.healthy)

    def _found(self, pattern: str) -> list[str]:
        healthy = self._root / "healthy"
        return [str(p.relative_to(healthy)) for p in healthy.glob(pattern) if p.is_file()]

    def fresh(self) -> None:
        shutil.rmtree(self._work.parent, ignore_errors=True)
        self._work.parent.mkdir()
        shutil.copytree(self._root / "healthy", self._work)
        self._outside.write_text(SECRET, encoding="utf-8")

    def read(self) -> tuple[Any, list[str], int, str]:
        """The value, lines said, exit code and stderr of the readers, as a command has them."""
        said: list[str] = []
        found: list[Any] = []
        out, err = io.StringIO(), io.StringIO()

        def main(argv: list[str]) -> None:
            found.append(self.kind.read(self._work, said.append))

        with (
            guarded(self._outside),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = cli.call(main, ["fuzz"])
        said += out.getvalue().splitlines()
        news = [line for line in said if line not in self._always]
        return (found or [None])[0], news, code, err.getvalue()

    def named(self, example: Example) -> str:
        """The files that an example damages."""
        return ", ".join(self.files[number % len(self.files)] for number, _ in example.damages)

    def outcome(self, example: Example) -> str:
        """Damages a fresh copy, reads it, and says how that went, in a word of `OUTCOMES`.

        Raises:
          AssertionError: in any other way; what it was is in the message.
          Hang: it took too long. It is no Exception, so that nobody looks for a smaller one.
        """
        self.fresh()
        for number, damage in example.damages:
            name = self.files[number % len(self.files)]
            apply(damage, self._work / name, self._root / "twin" / name, self._outside)
        files = [self._work / name for name in self.files]
        if example.sealed and self.kind.reseal and all(f.is_file() for f in files):
            with contextlib.suppress(Exception):  # of what is too damaged for it
                self.kind.reseal(self._work)
        try:
            value, said, code, told = self.read()
        except (Hang, MemoryError) as error:
            raise Hang(f"{self.kind.name}: {type(error).__name__} {error}") from error
        except (Exception, Ran) as error:
            trace = "".join(traceback.format_exception(error)[-12:])
            raise AssertionError(f"{self.kind.name}: {type(error).__name__}\n{trace}") from None
        self._check_outside()
        found = self._judged(value, said, code, told, example)
        self.counts[found] += 1
        return found

    def _judged(self, value: Any, said: list[str], code: int, told: str, example: Example) -> str:
        if code:
            check_sentence(code, told, str(self._work))
            return "refused"
        assert "Traceback" not in told, told
        if plain(value) == self._healthy:
            return REPAIRED if said else "right"
        if example.sealed or (self.kind.alone and _swapped(example)):
            return OTHER
        try:
            return self.kind.judge(self._work, value, self.healthy, said)
        except SilentChange as error:
            raise AssertionError(
                f"{self.kind.name}: {error}\n{value!r:.2000}\nis not\n{self.healthy!r:.2000}"
            ) from None

    def _check_outside(self) -> None:
        names = {path.name for path in self._outside.parent.iterdir()}
        extra = {name for name in names if not name.startswith("moved_")} - {"work", "secret"}
        assert not extra, f"written outside of the folder: {extra}"
        assert self._outside.read_text(encoding="utf-8") == SECRET, "a file outside was changed"


def _swapped(example: Example) -> bool:
    return any(damage.how == "swap" for _, damage in example.damages)


def check_sentence(code: int, told: str, folder: str) -> None:
    """Raises AssertionError unless a command ended with one sentence and the user's exit code."""
    assert code == cli.USER_ERROR, f"exit code {code}: {told}"
    assert "Traceback" not in told, told
    _, begun, sentence = told.rpartition("error: ")
    assert begun, f"no sentence: {told!r}"
    first, *rest = sentence.strip("\n").split("\n")
    assert all(line.startswith("  ") for line in rest), f"more than a sentence: {told!r}"
    words = re.sub(re.escape(folder), "", first)
    assert 10 < len(words) <= LONGEST, f"a sentence of {len(words)} characters: {words[:300]!r}"
