"""Figures of a run: `metrics.jsonl` and TensorBoard, one line a step, and their order on resume."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from tensorboardX import SummaryWriter

FILE_NAME = "metrics.jsonl"
CLOCK = frozenset({"tokens_per_second", "step_seconds", "data_wait_seconds", "mfu"})
"""The figures that two runs of the same config do not share."""


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, without a last one that was cut off; [] if none."""
    path = workdir / FILE_NAME
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` in one move: a reader sees the old text or the new, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


class MetricsLog:
    """Appends figures to a run directory. Lines after `resume_step` are dropped first.

    A run that was killed had gone on after its last checkpoint; those steps are run again, and
    no step may stand twice. Of many processes the first one writes.
    """

    def __init__(self, workdir: Path, resume_step: int) -> None:
        self._workdir = workdir
        self._writes = jax.process_index() == 0
        if self._writes:
            self._open(resume_step)

    def _open(self, resume_step: int) -> None:
        path = self._workdir / FILE_NAME
        kept = [line for line in read_metrics(self._workdir) if line["step"] <= resume_step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        board = str(self._workdir / "tensorboard")
        self._board = SummaryWriter(board, purge_step=resume_step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._writes:
            self._file.close()
            self._board.close()

    def rewind(self, step: int) -> None:
        """Drops the lines after `step`: the run has gone back to it."""
        self._close()
        if self._writes:
            self._open(step)

    def write(self, step: int, figures: Mapping[str, float | str | None]) -> None:
        """One line of `metrics.jsonl`, `step` first, and its numbers to TensorBoard.

        JSON knows neither NaN nor infinity: they are null.
        """
        if not self._writes:
            return
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in figures.items()
        }
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        for name, value in plain.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)


class Throughput:
    """Speed since the last reading; the first step (compilation) does not count.

    Args:
      ideal_step_seconds: of a step at the devices' peak; None where that is not known.
    """

    def __init__(self, ideal_step_seconds: float | None = None) -> None:
        self._ideal = ideal_step_seconds
        self._start: float | None = None
        self._tokens = self._steps = 0
        self._waited = 0.0

    def add(self, tokens: int) -> None:
        """Counts the tokens of a finished step; the first call starts the clock."""
        if self._start is None:
            self.restart()
            return
        self._tokens += tokens
        self._steps += 1

    def add_wait(self, seconds: float) -> None:
        """Counts a wait for data that has just ended."""
        self._waited += seconds

    def rate(self) -> float | None:
        """Tokens a second since `restart`, or None before a step was timed."""
        if self._start is None or self._tokens == 0:
            return None
        return self._tokens / (time.perf_counter() - self._start)

    def figures(self) -> dict[str, float | None]:
        """`tokens_per_second`, means a step in seconds, and `mfu`; {} before a step was timed.

        `step_seconds` holds all that passed between steps, saving and the wait for data included.
        `mfu` is the model FLOPs utilisation, 0 to 1, and None where the peak is not known.
        """
        rate = self.rate()
        if self._start is None or rate is None:
            return {}
        seconds = (time.perf_counter() - self._start) / self._steps
        return {
            "tokens_per_second": rate,
            "step_seconds": seconds,
            "data_wait_seconds": self._waited / self._steps,
            "mfu": None if self._ideal is None else self._ideal / seconds,
        }

    def restart(self) -> None:
        """Starts a new reading, for instance after work that is not training."""
        self._start, self._tokens, self._steps, self._waited = time.perf_counter(), 0, 0, 0.0
