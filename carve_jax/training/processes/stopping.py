"""The ways a run ends early: it diverged, its guard stopped it, or it was asked to stop."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


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


class SpikeFound(TrainingDiverged):
    """The guard refused a step, and all after it; the message names step, reason and way back."""

    def __init__(self, step: int, why: str, checkpoint: str) -> None:
        RuntimeError.__init__(
            self,
            f"stopped by config.guard at step {step}: {why}; no such update was applied, and "
            f"{checkpoint}; lower config.optimizer.peak_learning_rate, look at the data of that "
            "step, or raise the factors of config.guard",
        )
        self.step = step
        self.why = why


class Interrupted(Exception):
    """The run was asked to stop, and stopped after saving.

    `exit_code` is 128 + the signal, as of a process that the signal ended: schedulers take that for
    a machine that was taken away and start the run again (SLURM's requeue, a Kubernetes Job's
    backoff), neither for a success (0) nor for a fault that would come back (2, 3).
    """

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
        self._vote: jax.Array | None = None

    def agreed(self) -> int:
        """`received`, of any process, at the same step on all of them.

        To be called once per step by every process. Of many, each learns the outcome of the vote it
        cast a step earlier, so that no device waits for a host.
        """
        if jax.process_count() == 1:
            return self.received
        devices = Mesh(np.asarray(jax.devices()), ("device",))
        ballots = jax.make_array_from_process_local_data(
            NamedSharding(devices, PartitionSpec("device")),
            np.full(jax.local_device_count(), self.received, np.int32),
        )
        before, self._vote = self._vote, jax.numpy.max(ballots)
        return 0 if before is None else int(before)

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
