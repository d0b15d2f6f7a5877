"""The runs of a sweep for people: which are asked for, what they take, how they ended."""

import fnmatch
from typing import Any

from carve_jax.errors import UserError
from experiments.sweeps.machine import estimated_seconds
from experiments.sweeps.plan import Plan, PlannedRun
from experiments.sweeps.store import Store


def chosen(plan: Plan, only: str, index: int | None) -> list[PlannedRun]:
    """The runs that are asked for.

    Raises:
      UserError: there is none.
    """
    runs = [run for run in plan.every if fnmatch.fnmatchcase(run.id, only)]
    if not runs:
        raise UserError(f"--only={only}: no run is called so; the first is {plan.every[0].id}")
    if index is None:
        return runs
    if index >= len(runs):
        raise UserError(f"--index={index}: there are {len(runs)} runs, counted from 0")
    return [runs[index]]


def table(
    plan: Plan, runs: list[PlannedRun], store: Store, facts: dict[str, Any], jobs: int
) -> str:
    """Runs with parameters, tokens and time, and what they take together."""
    seconds, source = estimated_seconds(plan, store, facts, jobs)
    width = max(len(run.id) for run in runs)
    lines = [f"{'run':{width}} {'parameters':>14} {'tokens':>16} {'seconds':>10}  state"]
    lines += [
        f"{run.id:{width}} {run.parameters:>14,} {run.tokens:>16,} {seconds[run.id]:>10,.0f}"
        f"  {store.status(run).state}"
        for run in runs
    ]
    left = sum(seconds[run.id] for run in runs if not store.is_done(run))
    lines += [
        f"\n{plan.matched}",
        f"{len(runs)} runs, {jobs} at once: {in_words(left / jobs)} are left ({source})",
    ]
    return "\n".join(lines)


def in_words(seconds: float) -> str:
    """A time in the unit that fits."""
    for unit, size in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds / 60:.1f} minutes"


def summary(store: Store, runs: list[PlannedRun]) -> bool:
    """Says how the runs ended; whether all are done."""
    statuses = {run.id: store.status(run) for run in runs}
    done = [name for name, status in statuses.items() if status.state == "done"]
    print(f"{len(done)} of {len(runs)} runs are done; results are in {store.workdir}")
    for name, status in statuses.items():
        if status.state != "done":
            print(f"{name}: {status.state}, {status.message}")
    return len(done) == len(runs)
