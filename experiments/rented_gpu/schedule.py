"""Runs stages of tasks within a deadline, each task in a process of its own.

A task that crashes, hangs or does not fit costs itself alone: the record says why it is missing,
and the next run, which skips what is done, tries it again.
"""

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from carve_jax.files import write_atomically
from experiments.rented_gpu.record import Record
from experiments.rented_gpu.worker import LEFT_OUT

POLL = 0.05  # seconds between looks at the running processes
LONGEST_REASON = 300
WORKER = (sys.executable, "-m", "experiments.rented_gpu.worker")


@dataclasses.dataclass(frozen=True)
class Task:
    """One process.

    Attributes:
      name: in the record; no two tasks share one.
      call: what it runs, as "module:function"; see `worker`.
      arguments: of that function, plain values.
      least: seconds without which it is not begun.
      most: seconds after which it is stopped.
      serves: names of the tasks it prepares; once they are done it is not needed.
      spare: it only uses cores that the rest of its stage leaves idle, and ends with the stage.
    """

    name: str
    call: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    least: float = 10.0
    most: float = 60.0
    serves: tuple[str, ...] = ()
    spare: bool = False


@dataclasses.dataclass(frozen=True)
class Stage:
    """Tasks that belong together.

    Attributes:
      name: as it is printed.
      tasks: in the order in which they start.
      most: seconds for all of them.
      side_by_side: as many at once as there is room for; otherwise each has the card to itself.
    """

    name: str
    tasks: tuple[Task, ...]
    most: float = float("inf")
    side_by_side: bool = False


class Running:
    """A task's process, and the figures it has written so far."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        environment: Mapping[str, str],
        earlier: Any = None,
        worker: Sequence[str] = WORKER,
    ) -> None:
        self.task = task
        self.started = time.monotonic()
        self._figures = folder / f"{os.urandom(6).hex()}.json"
        if earlier is not None:
            write_atomically(self._figures, json.dumps(earlier))
        self._seen = self._written()
        self._said: IO[bytes] = self._figures.with_suffix(".txt").open("w+b")
        alarm = str(math.ceil(task.most) + 5)
        self._process = subprocess.Popen(
            [*worker, task.call, json.dumps(dict(task.arguments)), str(self._figures), alarm],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # so that its children can be stopped with it
        )

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started

    def poll(self) -> int | None:
        """Its exit code, None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def new_figures(self) -> Any | None:
        """What it has written since the last look."""
        written = self._written()
        if written == self._seen:
            return None
        self._seen = written
        return json.loads(self._figures.read_text(encoding="utf-8"))

    def stop(self) -> None:
        """Ends it and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> str:
        """What it printed; frees its files."""
        self._said.seek(0)
        text = self._said.read().decode("utf-8", "replace")
        self._said.close()
        return text

    def _written(self) -> int | None:
        return self._figures.stat().st_mtime_ns if self._figures.exists() else None


def needed(task: Task, record: Record) -> bool:
    """Whether a task has still to be done: it is not, and neither is all that it serves."""
    if record.done(task.name):
        return False
    return not task.serves or not all(map(record.done, task.serves))


class Schedule:
    """Runs stages one after the other.

    Args:
      record: takes each result as it comes.
      deadline: on `time.monotonic`'s clock; nothing of ours runs past it.
      slots: processes that fit side by side.
      folder: for the processes' files while they run.
      environment: of the processes.
      log: takes what each process printed.
      say: takes a line for each task that ends.
      worker: the command that runs a task.
    """

    def __init__(
        self,
        record: Record,
        deadline: float,
        *,
        slots: int,
        folder: Path,
        environment: Mapping[str, str],
        log: Callable[[str], object],
        say: Callable[[str], None] = print,
        worker: Sequence[str] = WORKER,
    ) -> None:
        self._record, self._deadline, self._slots = record, deadline, slots
        self._folder, self._environment, self._worker = folder, environment, worker
        self._log, self._say = log, say

    def run(self, stages: tuple[Stage, ...]) -> None:
        """All stages; what is done already is skipped."""
        for stage in stages:
            self._run_stage(stage)

    def _run_stage(self, stage: Stage) -> None:
        waiting = [task for task in stage.tasks if needed(task, self._record)]
        if not waiting:
            return
        end = min(self._deadline, time.monotonic() + stage.most)
        self._say(f"\n{stage.name}: {len(waiting)} to do, {end - time.monotonic():.0f} s at most")
        only_spare = all(task.spare for task in waiting)
        slots = self._slots if stage.side_by_side else 1
        running: list[Running] = []
        try:
            while running or waiting:
                running = [r for r in running if not self._ended(r, end)]
                left = [*waiting, *(r.task for r in running)]
                if not only_spare and all(task.spare for task in left):
                    running = [r for r in running if not self._ended(r, end=0.0)]
                    self._leave_out(waiting, "there were no idle cores for it")
                    return
                while waiting and len(running) < slots:
                    self._start(waiting.pop(0), end, running)
                time.sleep(POLL)
        finally:  # stopped by the user, or by an error of ours
            for one in running:
                one.stop()
                one.close()

    def _start(self, task: Task, end: float, running: list[Running]) -> None:
        left = end - time.monotonic()
        if left < task.least:
            reason = f"{max(left, 0):.0f} s were left, and it needs {task.least:.0f}"
            self._leave_out([task], reason)
            return
        earlier = self._record.figures(task.name)
        running.append(Running(task, self._folder, self._environment, earlier, self._worker))

    def _ended(self, one: Running, end: float) -> bool:
        """Looks after a process, which may run to `end`; True once it is over and recorded."""
        figures = one.new_figures()
        if figures is not None:
            self._record.keep(one.task.name, figures)
        code = one.poll()
        late = one.seconds > one.task.most or time.monotonic() > end
        if code is None and not late:
            return False
        one.stop()
        text = one.close()
        figures = one.new_figures()
        if figures is not None:
            self._record.keep(one.task.name, figures)
        self._log(f"\n===== {one.task.name}, {one.seconds:.1f} s\n{text}")
        state, why = _verdict(code, one, text)
        self._record.end(one.task.name, state, one.seconds, why)
        self._say(f"  {one.task.name:<52} {one.seconds:>6.1f} s  {state}{why and ': ' + why}")
        return True

    def _leave_out(self, tasks: list[Task], reason: str) -> None:
        for task in tasks:
            self._record.end(task.name, "left out", 0.0, reason)
            self._say(f"  {task.name:<52} {'':>8}  left out: {reason}")


def _verdict(code: int | None, one: Running, text: str) -> tuple[str, str]:
    """The state that a task ended in, and why it is not done."""
    if code == 0:
        return "done", ""
    if code is None:
        return "stopped", f"after {one.seconds:.0f} s"
    lines = text.strip().splitlines()
    last = lines[-1].strip()[:LONGEST_REASON] if lines else "it said nothing"
    if code == LEFT_OUT:
        return "left out", last
    if code < 0:
        return "failed", f"ended by {signal.Signals(-code).name}"
    return "failed", last
