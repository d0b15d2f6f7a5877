"""What a sweep leaves in its directory: sweep.json, and the state of every run.

DIR/sweep.json holds the plan and where it was started; DIR/runs/ID is a run directory of
experiments.train. Beside it, ID.status.json says how it went and ID.log what it said; ID.lock is
locked as long as a process of that run lives.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from carve_jax.errors import UserError
from carve_jax.files import read_json, try_lock, write_atomically, write_new
from carve_jax.training import metrics, provenance
from carve_jax.training.settings import differences
from experiments.sweep_plan import Plan, PlannedRun

FILE_NAME = "sweep.json"
RUNS = "runs"
FACTS = ("commit", "uncommitted_changes", "started", "versions", "devices")
PROMPT = "$ "  # in a log, before the command of each process
STATES = ("waiting", "running", "done", "failed", "diverged")


@dataclasses.dataclass(frozen=True)
class Status:
    """How a run went.

    Attributes:
      state: of `STATES`.
      attempts: how often it was started.
      exit_code: of the last process that ended; negative for a signal.
      message: its last line of error.
      seconds: of all its processes together.
      peak_rss_bytes: the most memory of any of them, Python and compilation included.
      device_peak_bytes: the most memory on a device; None where JAX does not say, as on CPUs.
      commit: of the code that ran last.
      jobs: how many runs may have gone at once on the machine, this one counted.
    """

    state: str = "waiting"
    attempts: int = 0
    exit_code: int | None = None
    message: str = ""
    seconds: float = 0.0
    peak_rss_bytes: int | None = None
    device_peak_bytes: int | None = None
    commit: str | None = None
    jobs: int | None = None


class Store:
    """The directory of a sweep."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir

    def directory(self, run: PlannedRun) -> Path:
        """Where a run trains."""
        return self.workdir / RUNS / run.id

    def path(self, run: PlannedRun, ending: str) -> Path:
        """Of a file beside that directory, such as "log"."""
        return self.workdir / RUNS / f"{run.id}.{ending}"

    def claim(
        self, plan: Plan, facts: Mapping[str, Any], command: str, *, other_commit: bool
    ) -> None:
        """Makes the directory this sweep's, or checks that it is.

        Args:
          facts: of `provenance.describe_environment`.
          command: that started the sweep.
          other_commit: whether earlier runs may be of other code.

        Raises:
          UserError: the directory belongs to other runs, or to other code.
        """
        if self.workdir.exists() and not self.workdir.is_dir():
            raise UserError(f"--workdir {self.workdir} is a file: give a directory")
        (self.workdir / RUNS).mkdir(parents=True, exist_ok=True)
        first = {"command": command, **{name: facts[name] for name in FACTS}}
        record = {"name": plan.name, "question": plan.question, **first, **_resolved(plan)}
        path = self.workdir / FILE_NAME
        if not write_new(path, json.dumps(record, indent=2) + "\n"):
            self._check(self._read(), plan, facts["commit"], other_commit)
        for run in plan.runs:
            write_new(self.path(run, "status.json"), _as_json(Status()))

    def _read(self) -> dict[str, Any]:
        path = self.workdir / FILE_NAME
        try:
            return read_json(path)
        except FileNotFoundError as error:
            raise UserError(f"{path} is gone: restore it from a copy") from error

    def _check(
        self, stored: dict[str, Any], plan: Plan, commit: str | None, other_commit: bool
    ) -> None:
        different = _different(stored, json.loads(json.dumps(_resolved(plan))))
        if different:
            raise UserError(
                f"{self.workdir} belongs to a sweep of other runs: {different}; give another "
                "--workdir, or the sweep that is there"
            )
        if stored["commit"] != commit and not other_commit:
            raise UserError(
                f"{self.workdir} was started with the code of commit {_short(stored['commit'])} "
                f"and this is {_short(commit)}: go back to it, give another --workdir, or allow "
                "runs of both with --allow_other_commit"
            )

    def lock(self, run: PlannedRun) -> IO[bytes] | None:
        """The locked file of a run; None if a process of it lives."""
        return try_lock(self.path(run, "lock"))

    def status(self, run: PlannedRun) -> Status:
        """How a run went so far.

        Raises:
          UserError: the file says something else.
        """
        path = self.path(run, "status.json")
        mend = "delete it to have the run looked at again"
        try:
            return Status(**read_json(path, mend=mend))
        except FileNotFoundError:
            return Status()
        except TypeError as error:
            raise UserError(f"{path} cannot be read ({error}): {mend}") from error

    def set_status(self, run: PlannedRun, status: Status) -> None:
        """Notes how a run went."""
        write_atomically(self.path(run, "status.json"), _as_json(status))

    def last_figures(self, run: PlannedRun) -> dict[str, Any]:
        """The last line of a run's metrics; {} if there is none."""
        path = self.directory(run) / metrics.FILE_NAME
        try:
            with path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
                lines = file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return {}
        for line in reversed(lines[-2:]):  # the last may be half written
            try:
                return json.loads(line)
            except json.JSONDecodeError:
                continue
        return {}

    def is_done(self, run: PlannedRun) -> bool:
        """Whether a run has come to its end, figures included."""
        return self.status(run).state == "done" and self.took_all_steps(run)

    def took_all_steps(self, run: PlannedRun) -> bool:
        """Whether a run's figures go to its last step."""
        return self.last_figures(run).get("step") == run.config.steps

    def last_line(self, run: PlannedRun) -> str:
        """What a run's last process said last; its line of error if there is one."""
        _, _, text = self.path(run, "log").read_text("utf-8", "replace").rpartition(f"\n{PROMPT}")
        lines = text.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return next(reversed(errors), lines[-1] if lines else "")

    def device_peak_bytes(self, run: PlannedRun) -> int | None:
        """What a finished run says of its device's memory."""
        path = self.directory(run) / provenance.FILE_NAME
        return read_json(path).get("device_peak_bytes") if path.exists() else None


def _resolved(plan: Plan) -> dict[str, Any]:
    """The part of sweep.json that is the plan's."""
    return {
        "baseline": plan.baseline,
        "matched": plan.matched,
        "tasks": plan.tasks,
        "variants": {
            v.name: {"title": v.title, "labels": v.labels, "overrides": v.overrides}
            for v in plan.variants
        },
        "runs": [
            {name: value for name, value in run._asdict().items() if name != "config"}
            for run in plan.runs
        ],
    }


def _different(stored: dict[str, Any], new: dict[str, Any]) -> str:
    """The first thing, in words, in which two plans differ; "" if they are the same."""
    if stored["baseline"] != new["baseline"]:
        return f"the baseline is {stored['baseline']} there and {new['baseline']} here"
    for task in stored["tasks"].keys() & new["tasks"].keys():
        there, here = (_tuples(plan["tasks"][task]["config"]) for plan in (stored, new))
        changed = differences(there, here)
        if changed:
            return f"of the task {task}, {'; '.join(changed)}"
        if stored["tasks"][task]["metrics"] != new["tasks"][task]["metrics"]:
            return f"the task {task} has other metrics"
    runs, others = ({run["id"]: run for run in plan["runs"]} for plan in (stored, new))
    missing, added = sorted(runs.keys() - others.keys()), sorted(others.keys() - runs.keys())
    if missing or added:
        words = [_some(missing, "there alone"), _some(added, "here alone")]
        return " and ".join(word for word in words if word)
    for name, run in runs.items():
        changed = [field for field in run if run[field] != others[name].get(field)]
        if changed:
            return f"{name} has other {' and '.join(changed)}"
    return ""


def _tuples(flat: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in flat.items()}


def _some(names: list[str], where: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more} {'are' if more else 'is'} {where}"


def _short(commit: str | None) -> str:
    return "none (no git)" if commit is None else commit[:10]


def _as_json(status: Status) -> str:
    return json.dumps(dataclasses.asdict(status), indent=2) + "\n"
