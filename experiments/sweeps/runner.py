"""Runs of a sweep as processes: as many at once as there are slots, tried again, watched, stopped.

A process holds the lock of its run for as long as it lives, so that nobody runs the same one beside
it, even if the sweep was killed. On Linux it is asked to stop when the sweep dies.
"""

import collections
import os
import shlex
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from carve_jax.errors import UserError
from carve_jax.training.processes.stopping import Interrupted, StopRequests
from carve_jax.training.workdir import claim_workdir
from experiments.cli import USER_ERROR
from experiments.sweeps.ending import sentence, status_at_end
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.process import MAXRSS_BYTES, Child, launch, peak_rss, train_command
from experiments.sweeps.store import PROMPT, Store
from experiments.sweeps.tuner import Tuner

Say = Callable[[str], None]
Command = Callable[[Store, PlannedRun], list[str]]


class Runner:
    """Takes runs to their end.

    Args:
      slots: for each process at once, what its environment has besides the sweep's own.
      commit: of the code.
      tuner: knows which runs wait for others; None if none do.
      command: makes the command of a run.
      say: takes one line for the user.
      pause: seconds from look to look.
    """

    def __init__(
        self,
        store: Store,
        slots: Sequence[Mapping[str, str]],
        *,
        commit: str | None,
        tuner: Tuner | None = None,
        command: Command = train_command,
        say: Say = print,
        pause: float = 0.2,
    ) -> None:
        self._store = store
        self._slots = slots
        self._commit = commit
        self._tuner = tuner
        self._command = command
        self._say = say
        self._pause = pause
        self._children: list[Child] = []
        self._peaks: dict[str, int | None] = {}  # memory, by run
        self._asked = False
        self._crashed: set[str] = set()  # once
        self._elsewhere: set[str] = set()  # said to be run by another process

    def run_all(self, runs: Sequence[PlannedRun]) -> None:
        """Runs those that are neither done nor diverged. Afterwards their status says how it went.

        Raises:
          Interrupted: ctrl-C or SIGTERM; the processes have saved and stopped.
        """
        finished = [run for run in runs if self._store.is_over(run)]
        waiting = collections.deque(run for run in runs if run not in finished)
        if finished:
            self._say(f"{len(finished)} of {len(runs)} runs came to their end before")
        steps = sum(run.config.steps for run in runs)
        with StopRequests() as stop, tqdm(total=steps, unit="step", disable=None) as bar:
            try:
                while self._children or waiting:
                    if stop.received:
                        self._ask_to_stop()
                        waiting.clear()
                    else:
                        self._start_some(waiting)
                    self._collect(waiting, bool(stop.received))
                    self._show(bar, runs, waiting)
                    time.sleep(self._pause)
            finally:  # empty but for an error, or a second ctrl-C
                for child in self._children:
                    child.process.kill()
        if stop.received:
            done = sum(self._store.is_done(run) for run in runs)
            raise Interrupted(
                stop.received, f"{done} of {len(runs)} runs are done and those going on have saved"
            )

    def _start_some(self, waiting: "collections.deque[PlannedRun]") -> None:
        """Fills the slots that are free; runs of other processes stay in line."""
        for _ in range(len(waiting)):
            free = set(range(len(self._slots))) - {child.slot for child in self._children}
            if not free:
                return
            run = waiting.popleft()
            if self._is_awaited(run, waiting) or not self._start(run, min(free)):
                waiting.append(run)

    def _is_awaited(self, run: PlannedRun, waiting: Collection[PlannedRun]) -> bool:
        """Whether a run is to wait for runs of its variant's tuning that are still to end."""
        pending = self._pending(run)
        ours = {each.id for each in waiting} | {child.run.id for child in self._children}
        return any(each.id in ours or self._is_held(each) for each in pending)

    def _pending(self, run: PlannedRun) -> list[PlannedRun]:
        return self._tuner.pending(run) if self._tuner else []

    def _is_held(self, run: PlannedRun) -> bool:
        """Whether another process has a run."""
        lock = self._store.lock(run)
        if lock is not None:
            lock.close()
        return lock is None

    def _start(self, run: PlannedRun, slot: int) -> bool:
        """Starts a run, unless it is over by now; False if another process has it."""
        lock = self._store.lock(run)
        if lock is None:
            if run.id not in self._elsewhere:
                self._elsewhere.add(run.id)
                self._say(f"{run.id} is being run by another process: waiting for its end")
            return False
        with lock, self._store.path(run, "log").open("ab") as log:
            if self._store.is_over(run):
                return True
            before = self._store.status(run)
            if pending := self._pending(run):  # and nobody at them
                message = f"its variant is not tuned: {pending[0].id} and the like are to end first"
                self._store.set_status(run, replace(before, state="waiting", message=message))
                self._say(f"{run.id} waits: {message}; run them with --only='tune.*'")
                return True
            try:
                run = self._tuner.tuned(run) if self._tuner else run
                claim_workdir(self._store.directory(run), run.config.to_dict())
            except UserError as error:
                self._store.set_status(run, replace(before, state="failed", message=str(error)))
                self._say(f"{run.id} failed: {error}")
                return True
            command = self._command(self._store, run)
            log.write(f"\n{PROMPT}{shlex.join(command)}\n".encode())
            log.flush()
            status = replace(
                before,
                state="running",
                attempts=before.attempts + 1,
                commit=self._commit,
                jobs=len(self._slots),
            )
            self._store.set_status(run, status)
            process = launch(command, self._slots[slot], log=log, lock=lock)
        self._children.append(Child(run, process, slot, time.monotonic()))
        return True

    def _ask_to_stop(self) -> None:
        """Has the processes save and stop; they are asked once, a second time would kill them."""
        if not self._asked:
            self._asked = True
            for child in self._children:
                child.process.send_signal(signal.SIGTERM)

    def _collect(self, waiting: "collections.deque[PlannedRun]", stopping: bool) -> None:
        """Notes how the processes ended that have; a crash is put in line again, once."""
        for child in list(self._children):
            self._peaks[child.run.id] = peak_rss(child.process.pid) or self._peaks.get(child.run.id)
            pid, code, usage = os.wait4(child.process.pid, os.WNOHANG)
            if pid == 0:
                continue
            child.process.returncode = os.waitstatus_to_exitcode(code)
            self._children.remove(child)
            peak = self._peaks.pop(child.run.id) or usage.ru_maxrss * MAXRSS_BYTES
            if self._note(child, peak, stopping):
                waiting.append(child.run)

    def _note(self, child: Child, peak_rss: int, stopping: bool) -> bool:
        """Writes down how a process ended; whether its run is to be tried again."""
        run, code = child.run, child.process.returncode
        status = status_at_end(
            self._store,
            run,
            code,
            seconds=time.monotonic() - child.started,
            peak_rss=peak_rss,
            stopping=stopping,
        )
        # What a user got wrong, and what diverged, would end the same way again.
        again = status.state == "failed" and code != USER_ERROR and run.id not in self._crashed
        if again:
            self._crashed.add(run.id)
            status = replace(status, state="waiting")
        self._store.set_status(run, status)
        self._say(sentence(self._store, run, status, again))
        return again

    def _show(self, bar: Any, runs: Sequence[PlannedRun], waiting: Sequence[PlannedRun]) -> None:
        """Moves the bar to the steps of all runs together."""
        if bar.disable:
            return
        active = {child.run.id for child in self._children}
        line = {run.id for run in waiting}
        over = [run for run in runs if run.id not in active | line]
        bar.n = sum(run.config.steps for run in over)
        for child in self._children:
            bar.n += self._store.last_figures(child.run).get("step", 0)
        bar.set_postfix_str(
            f"{len(over)} of {len(runs)} runs, at {', '.join(sorted(active)) or 'none'}"
        )
