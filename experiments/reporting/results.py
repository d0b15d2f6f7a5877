"""results.json: all that a report is made of, small enough to be committed beside it.

It is sweep.json without the configs, and of every run how it ended, its losses and its speed, and
what it was asked after training;
so that comparisons can be made again, and claims judged, without the runs.
"""

import json
from pathlib import Path
from typing import Any

from carve_jax.errors import UserError
from carve_jax.files import Each, Maybe, reason_of
from experiments.reporting.sweep import AGAIN, Run, Sweep, as_sweep, read_json
from experiments.sweeps.store import check_record
from experiments.sweeps.tuning import CHOICE, as_choice

FILE_NAME = "results.json"
RUN = {
    "state": str,
    "message": str,
    "attempts": int,
    "seconds": Maybe(float),
    "memory": Maybe(int),
    "on_device": bool,
    "jobs": Maybe(int),
    "commits": [str],
    "lines": [Each(Maybe(float))],
    "evaluations": Maybe(Each(Each(float))),
}
RESULTS = {
    "note": Maybe(str),
    "sweep": object,
    "results": Each(RUN),
    "choices": Each(Each(CHOICE)),
}
"""What the file holds, as `check_shape` takes it."""
UNSAID = ("config", "overrides", "runs")


def to_json(sweep: Sweep) -> str:
    """The file of a sweep, a run on each line."""
    record = {name: value for name, value in sweep.record.items() if name != "tune"}
    record["tasks"] = {name: _without(task) for name, task in record["tasks"].items()}
    record["variants"] = {name: _without(each) for name, each in record["variants"].items()}
    record["runs"] = [_without(run) for run in record["runs"]]
    record["tune"] = sweep.record.get("tune") and _without(sweep.record["tune"])
    names = {task.name: _told(sweep, task.name) for task in sweep.tasks}
    runs = [
        f"  {json.dumps(run.id)}: {json.dumps(_run(run, names[run.task]))}" for run in sweep.runs
    ]
    choices: dict[str, dict[str, Any]] = {}
    for (task, variant), choice in sweep.choices.items():
        choices.setdefault(task, {})[variant] = choice.record
    parts = {"sweep": json.dumps(record, indent=1), "choices": json.dumps(choices, indent=1)}
    parts["results"] = "{\n" + ",\n".join(runs) + "\n}"
    return "{" + ",\n".join(f'"{name}": {text}' for name, text in parts.items()) + "}\n"


def _without(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in UNSAID}


def _told(sweep: Sweep, task: str) -> set[str]:
    """The figures of a task that comparisons and curves are made of."""
    metrics = next(each for each in sweep.tasks if each.name == task).metrics
    names = {metric.name for metric in metrics}
    return {"step", "tokens", *names, *(name.removeprefix("eval_") for name in names)}


def _run(run: Run, told: set[str]) -> dict[str, Any]:
    lines = [{k: v for k, v in line.items() if k in told} for line in run.lines]
    lines = [line for line in lines if line.keys() - {"step", "tokens"}]
    if lines:
        lines[-1]["tokens_per_second"] = run.rate  # the median stands for all
    fields = {name: value for name, value in run._asdict().items() if name in RUN}
    if not run.evaluations:
        del fields["evaluations"]
    return {**fields, "commits": sorted(run.commits), "lines": lines}


def read_results(path: Path) -> tuple[Sweep, str]:
    """The sweep of a file, and what its note says of it.

    Raises:
      UserError: the file is gone, does not read, or holds something else.
    """
    found = read_json(path, RESULTS)
    record = check_record(found["sweep"], path)
    try:
        runs = tuple(_as_run(planned, found["results"]) for planned in record["runs"])
        choices = {
            (task, variant): as_choice(choice)
            for task, of_task in found["choices"].items()
            for variant, choice in of_task.items()
        }
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}): {AGAIN}") from error
    return as_sweep(path.parent, record, runs, choices), found.get("note") or ""


def _as_run(planned: dict[str, Any], results: dict[str, Any]) -> Run:
    if planned["id"] not in results:
        raise ValueError(f"no result of {planned['id']}")
    found = results[planned["id"]]
    if any(type(line.get("step")) is not int for line in found["lines"]):
        raise ValueError(f"a line of {planned['id']} has no step")
    known: dict[str, Any] = {
        name: planned.get(name)
        for name in ("id", "task", "variant", "seed", "parameters", "cache_bytes")
    }
    fields = {name: found.get(name) for name in RUN}
    fields["evaluations"] = found.get("evaluations") or {}
    return Run(**known, **{**fields, "commits": frozenset(found["commits"])})
