"""Figures of a run: `metrics.jsonl` and TensorBoard, one line a step, and their order on resume."""

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter

FILE_NAME = "metrics.jsonl"


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
    no step may stand twice.
    """

    def __init__(self, workdir: Path, resume_step: int) -> None:
        kept = [line for line in read_metrics(workdir) if line["step"] <= resume_step]
        write_atomically(workdir / FILE_NAME, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = (workdir / FILE_NAME).open("a", buffering=1)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()

    def write(self, step: int, figures: dict[str, float]) -> None:
        """One line of `metrics.jsonl`, `step` first, and the same to TensorBoard."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)


class Throughput:
    """Tokens a second since the last reading; the first step (compilation) does not count."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._tokens = 0

    def add(self, tokens: int) -> None:
        """Counts the tokens of a finished step; the first call starts the clock."""
        if self._start is None:
            self.restart()
        else:
            self._tokens += tokens

    def rate(self) -> float | None:
        """Tokens a second since `restart`, or None before a step was timed."""
        if self._start is None or self._tokens == 0:
            return None
        return self._tokens / (time.perf_counter() - self._start)

    def restart(self) -> None:
        """Starts a new reading, for instance after work that is not training."""
        self._start, self._tokens = time.perf_counter(), 0
