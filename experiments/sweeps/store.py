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
from carve_jax.files import (
    Each,
    Maybe,
    check_shape,
    inside,
    made_directory,
    open_regular,
    parse_json,
    read_json,
    reason_of,
    shown,
    try_lock,
    write_atomically,
    write_new,
)
from carve_jax.training.reports import metrics, provenance
from carve_jax.training.settings import differences
from experiments.sweeps.plan import BETTER, Plan, PlannedRun

FILE_NAME = "sweep.json"
RUNS = "runs"
FACTS = ("commit", "uncommitted_changes", "started", "versions", "devices")
PROMPT = "$ "  # in a log, before the command of each process
STATES = ("waiting", "running", "done", "failed", "diverged")


MEND = "restore it from a copy"
LONGEST = 400  # characters of what differs
TAIL = 1 << 16  # bytes at the end of a file that are looked at
RECORD = {
    "name": str,
    "question": str,
    "commit": Maybe(str),
    "command": Maybe(str),
    "started": Maybe(str),
    "uncommitted_changes": Maybe(bool),
    "versions": Maybe(Each(Maybe(str))),
    "devices": Maybe([str]),
    "baseline": str,
    "matched": Maybe(str),
    "tasks": Each(
        {
            "title": Maybe(str),
            "config": Maybe(Each(object)),
            "metrics": [{"name": str, "better": str, "title": Maybe(str), "solved": Maybe(float)}],
        }
    ),
    "variants": Each({"title": Maybe(str), "labels": Maybe(Each(object))}),
    "runs": [
        {
            "id": str,
            "task": str,
            "variant": str,
            "seed": int,
            "parameters": Maybe(int),
            "cache_bytes": Maybe(int),
            "tokens": Maybe(int),
        }
    ],
    "tune": Maybe({"field": str, "grid": [float], "seeds": [int], "steps": int}),
}
"""What sweep.json holds, as `check_shape` takes it."""
STATUS = {
    "state": Maybe(str),
    "attempts": Maybe(int),
    "exit_code": Maybe(int),
    "message": Maybe(str),
    "seconds": Maybe(float),
    "peak_rss_bytes": Maybe(int),
    "device_peak_bytes": Maybe(int),
    "commit": Maybe(str),
    "jobs": Maybe(int),
}
"""What a run's status holds."""


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
        """The path of a file beside that directory, such as "log"."""
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
        made_directory(made_directory(self.workdir, "--workdir") / RUNS, "--workdir")
        first = {"command": command, **{name: facts[name] for name in FACTS}}
        record = {"name": plan.name, "question": plan.question, **first, **_resolved(plan)}
        path = self.workdir / FILE_NAME
        if not write_new(path, json.dumps(record, indent=2) + "\n"):
            self._check(self._read(), plan, facts["commit"], other_commit)
        for run in plan.every:
            write_new(self.path(run, "status.json"), _as_json(Status()))

    def _read(self) -> dict[str, Any]:
        path = self.workdir / FILE_NAME
        try:
            return read_record(path)
        except FileNotFoundError as error:
            raise UserError(f"{path} is gone: restore it from a copy") from error

    def _check(
        self, stored: dict[str, Any], plan: Plan, commit: str | None, other_commit: bool
    ) -> None:
        different = _different(stored, json.loads(json.dumps(_resolved(plan))))
        if different:
            raise UserError(
                f"{self.workdir} belongs to a sweep of other runs: {different[:LONGEST]}; give "
                "another --workdir, or the sweep that is there"
            )
        before = stored.get("commit")
        if before != commit and not other_commit:
            raise UserError(
                f"{self.workdir} was started with the code of commit {_short(before)} "
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
            return Status(**read_status(path, mend=mend))
        except FileNotFoundError:
            return Status()
        except TypeError as error:  # a field that none has
            raise UserError(f"{path} cannot be read ({reason_of(error)}): {mend}") from error

    def set_status(self, run: PlannedRun, status: Status) -> None:
        """Notes how a run went."""
        write_atomically(self.path(run, "status.json"), _as_json(status))

    def last_figures(self, run: PlannedRun) -> dict[str, Any]:
        """The numbers in the last line of a run's metrics; {} if there is none."""
        lines = _tail(self.directory(run) / metrics.FILE_NAME).splitlines()
        for line in reversed(lines[-2:]):  # the last may be half written
            try:
                found = parse_json(line)
            except ValueError:
                continue
            if metrics.is_line(found):
                return {k: v for k, v in found.items() if not isinstance(v, str)}
        return {}

    def is_done(self, run: PlannedRun) -> bool:
        """Whether a run has come to its end, figures included."""
        return self.status(run).state == "done" and self.took_all_steps(run)

    def is_over(self, run: PlannedRun) -> bool:
        """Whether there is nothing left to try: a run is done, or has diverged."""
        return self.is_done(run) or self.status(run).state == "diverged"

    def took_all_steps(self, run: PlannedRun) -> bool:
        """Whether a run's figures go to its last step."""
        return self.last_figures(run).get("step") == run.config.steps

    def last_line(self, run: PlannedRun) -> str:
        """What a run's last process said last; its line of error if there is one."""
        _, _, text = _tail(self.path(run, "log")).rpartition(f"\n{PROMPT}")
        lines = text.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return next(reversed(errors), lines[-1] if lines else "")

    def device_peak_bytes(self, run: PlannedRun) -> int | None:
        """What a finished run says of its device's memory; None of one that does not say."""
        try:
            found = read_json(self.directory(run) / provenance.FILE_NAME).get("device_peak_bytes")
        except (FileNotFoundError, UserError):  # no sweep stops for it
            return None
        return found if type(found) is int else None


def read_record(path: Path) -> dict[str, Any]:
    """What a sweep.json holds.

    Raises:
      FileNotFoundError: there is none.
      UserError: it does not read, or holds something else.
    """
    return check_record(read_json(path, mend=MEND), path)


def check_record(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a sweep.json holds, if it is one.

    Args:
      path: of the file that it is from.

    Raises:
      UserError: it is something else.
    """
    try:
        check_shape(record, RECORD)
        for name in record["tasks"]:
            inside(path.parent, name, path)  # pictures are called after it
        for run in record["runs"]:
            inside(path.parent / RUNS, run["id"], path)
        variants, tasks = record["variants"], record["tasks"]
        if record["baseline"] not in variants:
            known = shown(", ".join(variants))[1:-1]
            raise ValueError(
                f"the baseline {shown(record['baseline'])} is none of the variants {known}"
            )
        for task, part in tasks.items():
            if not part["metrics"]:
                raise ValueError(f"its task {shown(task)} has no metrics")
            if wrong := [m["better"] for m in part["metrics"] if m["better"] not in BETTER]:
                raise ValueError(f"better is {shown(wrong[0])}, and not lower or higher")
        names = [run["id"] for run in record["runs"]]
        if len(set(names)) < len(names):
            raise ValueError("two of its runs have one id")
        for run in record["runs"]:
            if run["task"] not in tasks or run["variant"] not in variants:
                raise ValueError(f"its run {shown(run['id'])} is of no task or variant of it")
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}): {MEND}") from error
    return record


def read_status(path: Path, *, mend: str) -> dict[str, Any]:
    """What the status file of a run holds.

    Raises:
      FileNotFoundError: there is none.
      UserError: it does not read, or holds something else.
    """
    found = read_json(path, mend=mend)
    try:
        check_shape(found, STATUS)
        if found.get("state", STATES[0]) not in STATES:
            raise ValueError(f"state is {shown(found['state'])}")
        for name in ("attempts", "seconds", "peak_rss_bytes", "device_peak_bytes", "jobs"):
            if not 0 <= (found.get(name) or 0) < float("inf"):
                raise ValueError(f"{name} is {found[name]}")
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}): {mend}") from error
    # What is null where something must be is as if it were not there.
    must = {field.name for field in dataclasses.fields(Status) if field.default is not None}
    return {name: value for name, value in found.items() if value is not None or name not in must}


def _tail(path: Path) -> str:
    """The last text of a file; "" where there is none that can be read."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


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
        "runs": [_described(run) for run in plan.runs],
        "tune": plan.tuning
        and {**plan.tuning._asdict(), "runs": [_described(run) for run in plan.trials]},
    }


def _described(run: PlannedRun) -> dict[str, Any]:
    unsaid = {"config"} if run.trial is not None else {"config", "trial"}
    return {name: value for name, value in run._asdict().items() if name not in unsaid}


def _different(stored: dict[str, Any], new: dict[str, Any]) -> str:
    """The first thing, in words, in which two plans differ; "" if they are the same."""
    if stored["baseline"] != new["baseline"]:
        return f"the baseline is {stored['baseline']} there and {new['baseline']} here"
    for task in stored["tasks"].keys() & new["tasks"].keys():
        there, here = (_tuples(plan["tasks"][task].get("config") or {}) for plan in (stored, new))
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
    if stored.get("tune") != new["tune"]:
        return f"{_tuned(stored.get('tune'))} there and {_tuned(new['tune'])} here"
    for name, run in runs.items():
        changed = [field for field in run if run[field] != others[name].get(field)]
        if changed:
            return f"{name} has other {' and '.join(changed)}"
    return ""


def _tuned(tune: dict[str, Any] | None) -> str:
    if tune is None:
        return "nothing is tuned"
    told = ", ".join(f"{name} {tune.get(name)}" for name in ("grid", "seeds", "steps"))
    return f"{tune.get('field')} is tuned ({told})"


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
