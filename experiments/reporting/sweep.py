"""Reads the directory of a sweep: what was planned, and what became of each run."""

import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from carve_jax import files
from carve_jax.errors import UserError
from carve_jax.training.reports import provenance
from carve_jax.training.reports.metrics import read_metrics
from experiments.evaluating.record import last_figures
from experiments.sweeps.store import FILE_NAME, RUNS, read_record, read_status
from experiments.sweeps.tuning import Choice, read_choice

STARTED = {"commit": files.Maybe(str)}
PROVENANCE = {**STARTED, "earlier": files.Maybe([STARTED])}
AGAIN = "restore it or run again"

SILENT = {
    "waiting": "it has not started",
    "running": "it has not ended, or was cut off without a word",
}


class Metric(NamedTuple):
    """A figure of `metrics.jsonl` that runs are compared by.

    Attributes:
      better: "lower" or "higher".
      solved: the value from which a run counts as having solved its task; None where there is none.
    """

    name: str
    better: str
    title: str
    solved: float | None = None

    def is_solved(self, value: float) -> bool:
        """Whether a value reaches `solved`."""
        assert self.solved is not None
        return value <= self.solved if self.better == "lower" else value >= self.solved


class Task(NamedTuple):
    """What the variants were trained on; the first of its metrics is the one that figures show."""

    name: str
    title: str
    metrics: tuple[Metric, ...]


class Run(NamedTuple):
    """One training run.

    Attributes:
      cache_bytes: carried of one sequence when decoding; None in records of before.
      state: "waiting", "running", "done", "failed" or "diverged".
      message: the last thing that it said, of a run that went wrong.
      seconds: that it took; None if unknown.
      memory: peak in bytes, of the device where it tells and else of the process; None if unknown.
      on_device: whether `memory` is the device's.
      jobs: how many runs shared the machine; None if unknown.
      commits: of the code that trained it, all starts together.
      lines: of its metrics.jsonl.
      evaluations: what experiments.evaluate measured at its last step, by task and metric.
    """

    id: str
    task: str
    variant: str
    seed: int
    parameters: int | None
    cache_bytes: int | None
    state: str
    message: str
    attempts: int
    seconds: float | None
    memory: int | None
    on_device: bool
    jobs: int | None
    commits: frozenset[str]
    lines: list[dict[str, Any]]
    evaluations: dict[str, dict[str, float]]

    def curve(self, metric: str) -> dict[int, tuple[float, float]]:
        """(tokens seen, value) by step, where the value is finite."""
        return {
            line["step"]: (line.get("tokens") or line["step"], line[metric])
            for line in self.lines
            if line.get(metric) is not None
        }

    def final(self, metric: str) -> float:
        """The value at the last evaluation; NaN where it was not finite.

        Raises:
          UserError: the run never measured it.
        """
        values = [line[metric] for line in self.lines if metric in line]
        if not values:
            known = sorted({name for line in self.lines for name in line})
            raise UserError(
                f"the run {self.id} has no metric {metric!r} in its metrics.jsonl, which has "
                f"{', '.join(known) or 'no lines'}: correct the metrics of {FILE_NAME}, or run it "
                "again"
            )
        return math.nan if values[-1] is None else float(values[-1])

    @property
    def rate(self) -> float | None:
        """Tokens per second: the median over the run's readings."""
        rates = [line["tokens_per_second"] for line in self.lines if line.get("tokens_per_second")]
        return statistics.median(rates) if rates else None

    @property
    def last_step(self) -> int:
        """The last step with a line; 0 before the first."""
        return self.lines[-1]["step"] if self.lines else 0


class Sweep(NamedTuple):
    """A sweep as it stands.

    Attributes:
      record: sweep.json as it is.
      variants: titles by name, the baseline's first.
      choices: what was tuned, by task and variant; those that are made so far.
    """

    workdir: Path
    record: dict[str, Any]
    tasks: tuple[Task, ...]
    variants: dict[str, str]
    runs: tuple[Run, ...]
    choices: dict[tuple[str, str], Choice]

    @property
    def is_tuned(self) -> bool:
        """Whether its variants are tuned before they are compared."""
        return self.record.get("tune") is not None

    @property
    def baseline(self) -> str:
        """Name of the variant that the others are compared with."""
        return self.record["baseline"]

    def name_of(self, run: Run) -> str:
        """A run in the words of the report."""
        task = next(task.title for task in self.tasks if task.name == run.task)
        return f"{self.variants[run.variant]} on {task}, seed {run.seed}"

    def of(self, task: Task, variant: str) -> list[Run]:
        """The runs of a variant on a task, by seed."""
        return [r for r in self.runs if (r.task, r.variant) == (task.name, variant)]

    def fault(self, run: Run) -> str | None:
        """Why a run does not count; None if it does.

        Raises:
          UserError: it finished without a metric of its task.
        """
        if run.state != "done":
            return run.message or SILENT.get(run.state, "it left no message")
        for metric in next(task for task in self.tasks if task.name == run.task).metrics:
            if not math.isfinite(run.final(metric.name)):
                return f"it finished, but its {metric.title} is not a finite number"
        return None

    @property
    def counted(self) -> list[Run]:
        """The runs that finished with all their figures."""
        return [run for run in self.runs if self.fault(run) is None]

    @property
    def commits(self) -> set[str]:
        """The commits of all code that had a part in the sweep."""
        own = {self.record["commit"]} if self.record.get("commit") else set()
        return own.union(*(run.commits for run in self.runs))


def read_sweep(workdir: Path, *, allow_other_commit: bool = False) -> Sweep:
    """The sweep of a directory, with every run that was planned.

    Args:
      allow_other_commit: takes runs that were trained by different code, which are else refused.

    Raises:
      UserError: no sweep there, a file that does not read, or runs of several commits.
    """
    path = workdir / FILE_NAME
    if not path.exists():
        raise UserError(
            f"--workdir={workdir} has no {FILE_NAME}: give a directory that experiments.sweep wrote"
        )
    record = read_record(path)
    choices = {
        (task, variant): choice
        for task in record["tasks"]
        for variant in record["variants"]
        if record.get("tune") and (choice := read_choice(workdir, task, variant))
    }
    runs = tuple(_run(workdir / RUNS, planned) for planned in record["runs"])
    sweep = as_sweep(workdir, record, runs, choices)
    if len(sweep.commits) > 1 and not allow_other_commit:
        raise UserError(_which_commits(sweep))
    return sweep


def as_sweep(
    workdir: Path,
    record: dict[str, Any],
    runs: tuple[Run, ...],
    choices: dict[tuple[str, str], Choice],
) -> Sweep:
    """The sweep of a checked record and what became of its runs."""
    baseline = record["baseline"]
    names = [baseline, *(name for name in record["variants"] if name != baseline)]
    return Sweep(
        workdir=workdir,
        record=record,
        tasks=tuple(_task(name, task) for name, task in record["tasks"].items()),
        variants={name: record["variants"][name].get("title") or name for name in names},
        runs=runs,
        choices=choices,
    )


def read_json(path: Path, shape: files.Shape) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: it does not read, or is of another shape.
    """
    try:
        found = files.read_json(path, mend=AGAIN)
        files.check_shape(found, shape)
    except FileNotFoundError as error:
        raise UserError(f"{path} is gone: {AGAIN}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({files.reason_of(error)}): {AGAIN}") from error
    return found


def _task(name: str, task: dict[str, Any]) -> Task:
    metrics = [
        Metric(m["name"], m["better"], m.get("title") or m["name"], m.get("solved"))
        for m in task["metrics"]
    ]
    return Task(name, task.get("title") or name, tuple(metrics))


def _run(directory: Path, planned: dict[str, Any]) -> Run:
    own = directory / planned["id"]
    provenance_file = own / provenance.FILE_NAME
    facts = read_json(provenance_file, PROVENANCE) if provenance_file.exists() else {}
    status_file = directory / f"{planned['id']}.status.json"
    status = read_status(status_file, mend=AGAIN) if status_file.exists() else {}
    device = status.get("device_peak_bytes")
    lines = [_numbers(line) for line in read_metrics(own)]
    last = lines[-1]["step"] if lines else 0
    return Run(
        id=planned["id"],
        task=planned["task"],
        variant=planned["variant"],
        seed=planned["seed"],
        parameters=planned.get("parameters"),
        cache_bytes=planned.get("cache_bytes"),
        state=status.get("state", "waiting"),
        message=status.get("message") or "",
        attempts=status.get("attempts") or 0,
        seconds=status.get("seconds"),
        memory=device or status.get("peak_rss_bytes"),
        on_device=bool(device),
        jobs=status.get("jobs"),
        commits=_commits([status, facts, *(facts.get("earlier") or [])]),
        lines=lines,
        evaluations=last_figures(own / f"evaluation_{last}.json"),
    )


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    """A line without what can be no figure."""
    return {name: value for name, value in line.items() if not isinstance(value, str)}


def _commits(starts: Iterable[dict[str, Any]]) -> frozenset[str]:
    return frozenset(start["commit"] for start in starts if start.get("commit"))


def _which_commits(sweep: Sweep) -> str:
    own = sweep.record.get("commit")
    other = next((run for run in sweep.runs if run.commits - {own}), sweep.runs[0])
    short = ", ".join(sorted(commit[:8] for commit in other.commits - {own}))
    started = f"the sweep by {own[:8]}" if own else "others by other code"
    return (
        f"the run {other.id} was trained by commit {short} and {started}: run it again, or give "
        "--allow_other_commit to compare them all the same"
    )
