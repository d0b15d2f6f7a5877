"""The two ways a run ends early: it diverged, or it was asked to stop."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is NaN or infinite; the message names step, place and way back."""

    exit_code = 3

    def __init__(self, step: int, places: list[str], checkpoint: str) -> None:
        super().__init__(
            f"training diverged at step {step}: NaN or infinity in {', '.join(places)}; no update "
            f"was applied from there on, and {checkpoint}; lower "
            "config.optimizer.peak_learning_rate or look at the data of that step"
        )
        self.step = step
        self.places = places


class Interrupted(Exception):
    """The run was asked to stop, and stopped after saving; `exit_code` is 128 + the signal."""

    def __init__(self, signal_number: int, checkpoint: str) -> None:
        super().__init__(f"interrupted: {checkpoint}; run the same command again to go on")
        self.exit_code = 128 + signal_number


class StopRequests:
    """Context in which ctrl-C and SIGTERM ask for a stop after the current step.

    `received` is the signal's number, or 0. A second ctrl-C acts as it did before the context.
    Outside the main thread, where Python delivers no signals, it never receives any.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
