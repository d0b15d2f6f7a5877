"""A thread that says what a run waits for, when it waits too long."""

import sys
import threading
import time
import traceback
from collections.abc import Callable

from carve_jax.training.processes.messages import who


class Watchdog:
    """Says so when the thread that made it has been at one thing for `seconds`; a context manager.

    It says so again whenever the wait has doubled. Of many processes, the one whose line names the
    data is what the others, whose lines name the step, wait for.

    Args:
      seconds: how long is too long; 0 watches nothing.
      say: takes one line for the user.
    """

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._say = say
        self._watched = threading.get_ident()
        self._now = ("its start", time.monotonic())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._who = who()

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stopped.set()
        if self._seconds:
            self._thread.join()

    def waits_for(self, what: str) -> None:
        """From now on, the run waits for `what`, such as "step 3"; ends the wait before."""
        self._now = (what, time.monotonic())

    def _watch(self) -> None:
        told, allowed = self._now, self._seconds
        while not self._stopped.wait(self._seconds / 4):
            what, since = now = self._now
            if now is not told:
                told, allowed = now, self._seconds
            waited = time.monotonic() - since
            if waited >= allowed:
                self._say(f"{self._who} has waited {waited:.0f} s for {what}{self._place()}")
                allowed = 2 * waited

    def _place(self) -> str:
        """Where the watched thread is, as a clause; "" if it is gone."""
        frame = sys._current_frames().get(self._watched)
        if frame is None:
            return ""
        last = traceback.extract_stack(frame)[-1]
        return f", in {last.name} ({last.filename}:{last.lineno})"
