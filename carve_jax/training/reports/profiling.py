"""A profile of some steps, on request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

DIRECTORY = "profile"


class Profile:
    """Traces the steps first to last (both included) into `workdir`/profile; a context manager.

    Read it with TensorBoard's profile plugin, or with xprof.

    Args:
      workdir: of the run.
      steps: first and last; (0, 0) for none.
      say: takes one line for the user.
    """

    def __init__(self, workdir: Path, steps: tuple[int, int], say: Callable[[str], None]) -> None:
        self._directory = Path(workdir) / DIRECTORY
        self._first, self._last = steps
        self._say = say
        self._tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Starts the trace where it is due; to be called before a step is dispatched."""
        if not self._tracing and 0 < self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True

    def after(self, step: int, state: Any) -> None:
        """Ends the trace where it is due; takes a step's result, which may still be running."""
        if self._tracing and step >= self._last:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            self._say(f"profile of steps {self._first} to {self._last}: {self._directory}")
