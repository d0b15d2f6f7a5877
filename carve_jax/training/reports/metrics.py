"""Figures of a run: `metrics.jsonl` and TensorBoard, one line per step, in order on resume too."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import jax
from tensorboardX import SummaryWriter

from carve_jax.errors import UserError
from carve_jax.files import Damaged, read_json_lines, write_atomically

__all__ = ["FILE_NAME", "MetricsLog", "Throughput", "read_metrics", "write_atomically"]

FILE_NAME = "metrics.jsonl"
TENSORBOARD = "tensorboard"  # the folder
DAMAGED = "metrics_damaged.jsonl"
CLOCK = frozenset({"tokens_per_second", "step_seconds", "data_wait_seconds", "mfu"})
"""The figures that two runs of the same config do not share."""


def read_metrics(
    workdir: Path, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl` but for damaged ones; [] if there is none.

    Args:
      workdir: of the run.
      say: takes one line for the user where some are damaged.

    Raises:
      UserError: it is no file of lines at all.
    """
    lines, damaged = _read(workdir)
    if damaged:
        say(
            f"{workdir / FILE_NAME}: {len(damaged)} damaged lines are passed over (the first: "
            f"{damaged[0].reason})"
        )
    return lines


def _read(workdir: Path) -> tuple[list[dict[str, Any]], list[Damaged]]:
    path = workdir / FILE_NAME
    try:
        lines, damaged = read_json_lines(path)
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): move it away to go on without its figures"
        ) from error
    good = []
    for line in lines:
        if is_line(line):
            good.append(line)
        else:
            raw = json.dumps(line).encode()
            damaged.append(Damaged(0, raw, "a line needs a whole step and plain figures"))
    return good, damaged


def is_line(line: Any) -> bool:
    """Whether a value is a line of `metrics.jsonl`: a whole step, and plain figures."""
    if not isinstance(line, dict):
        return False
    plain = all(v is None or isinstance(v, (str, int, float)) for v in line.values())
    return plain and type(line.get("step")) is int


class MetricsLog:
    """Appends figures to a run directory. Lines after `resume_step` are dropped first.

    A run that was killed had gone on after its last checkpoint; those steps are run again, and
    no step may stand twice. Nothing is touched before there is a line to write. Damaged lines are
    set aside and told of. Of many processes the first one writes.

    Args:
      workdir: the directory.
      resume_step: the step that the run goes on from.
      say: takes one line for the user.
    """

    def __init__(
        self, workdir: Path, resume_step: int, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._workdir = workdir
        self._resume_step = resume_step
        self._say = say
        self._writes = jax.process_index() == 0
        self._open: tuple[IO[str], SummaryWriter] | None = None

    def _files(self) -> tuple[IO[str], SummaryWriter]:
        if self._open is None:
            path = self._workdir / FILE_NAME
            self._drop_lines(path)
            board = str(self._workdir / TENSORBOARD)
            self._open = (
                path.open("a", buffering=1, encoding="utf-8"),
                SummaryWriter(board, purge_step=self._resume_step + 1),
            )
        return self._open

    def _drop_lines(self, path: Path) -> None:
        lines, damaged = _read(self._workdir)
        kept = [line for line in lines if line["step"] <= self._resume_step]
        content = "".join(json.dumps(line) + "\n" for line in kept)
        if damaged and not path.read_bytes().endswith(b"\n"):
            damaged = [each for each in damaged if each.number < max(d.number for d in damaged)]
        if damaged:  # but for a last line that a kill cut off
            aside = path.with_name(DAMAGED)
            with aside.open("ab") as file:
                file.write(b"".join(each.raw + b"\n" for each in damaged))
            self._say(
                f"{path}: {len(damaged)} damaged lines (the first: {damaged[0].reason}); they are "
                f"kept in {aside.name}, and all others stay"
            )
        if path.exists() and path.read_bytes() != content.encode():
            write_atomically(path, content)

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
        if self._open is not None:
            for file in self._open:
                file.close()
            self._open = None

    def rewind(self, step: int) -> None:
        """Drops the lines after `step`: the run has gone back to it."""
        self._close()
        self._resume_step = step

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
        file, board = self._files()
        file.write(json.dumps({"step": step, **plain}) + "\n")
        for name, value in plain.items():
            if isinstance(value, (int, float)):
                board.add_scalar(name, value, step)


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
        """Tokens per second since `restart`, or None before a step was timed."""
        if self._start is None or self._tokens == 0:
            return None
        return self._tokens / (time.perf_counter() - self._start)

    def figures(self) -> dict[str, float | None]:
        """`tokens_per_second`, mean seconds per step, and `mfu`; {} before a step was timed.

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
