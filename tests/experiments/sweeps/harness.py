"""A sweep of fake runs: python -m tests.experiments.sweeps.harness DIRECTORY SECONDS_A_STEP."""

import os
import sys
from pathlib import Path

from ml_collections import ConfigDict

from experiments import cli
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.runner import Runner
from experiments.sweeps.store import RUNS, Store

FAKE = Path(__file__).with_name("fake_run.py")
STEPS = 6


def make_runs(count):
    """Runs with nothing in their configs but steps."""
    return [
        PlannedRun(f"task.v.s{seed}", "task", "v", seed, {}, ConfigDict({"steps": STEPS}), 1, 4, 60)
        for seed in range(count)
    ]


def fake_command(store, run, pause=0.0, ending=()):
    """The command of a fake run; the run whose id is FAKE_RUN_FAILS crashes."""
    if os.environ.get("FAKE_RUN_FAILS") == run.id:
        ending = (1,)
    arguments = (store.directory(run), run.config.steps, pause, *ending)
    return [sys.executable, str(FAKE), *map(str, arguments)]


def make_runner(directory, *, slots=2, pause=0.0, endings=None, say=print):
    """A runner of fakes; `endings` says how a run ends by its id: exit code and how many times."""

    def command(store, run):
        return fake_command(store, run, pause, (endings or {}).get(run.id, ()))

    (directory / RUNS).mkdir(parents=True, exist_ok=True)
    return Runner(
        Store(directory), [{}] * slots, commit="abc", command=command, say=say, pause=0.02
    )


def main(argv):
    """Six runs, two at once."""
    make_runner(Path(argv[1]), pause=float(argv[2])).run_all(make_runs(6))


if __name__ == "__main__":
    cli.run(main)
