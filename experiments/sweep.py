"""Trains every run of a sweep (tasks, variants and seeds), as many at once as fit.

  python -m experiments.sweep --config=configs/sweeps/NAME.py --workdir=DIR [flags]
      [--set.KEY=VALUE …] [--config.KEY=VALUE …]

The same command again goes on after any kill: what is done stays, what was cut off resumes from its
checkpoint, what failed is tried again. A crash is tried once more at once; a run that diverged is
not. Every run is a process and a run directory of experiments.train, DIR/runs/ID, with its log
(which begins with its command) and its status beside it. Exits with 1 if any run failed.

A sweep that tunes (`tune` in its config) first trains every variant with each value of the grid, on
seeds of its own, and the runs of the comparison start with what was chosen when their variant's
tuning is done. Its runs come first in --index and --count and are called tune.*: an array job takes
them alone with --only='tune.*', and another one, after it, the rest.

On GPUs each run has as many as its mesh; with a larger --jobs, runs of one GPU share it, each with
its part of the memory (XLA_PYTHON_CLIENT_MEM_FRACTION). All share what they compile, where commands
keep that, so that a later sitting finds it again (docs/commands.md says where).

--set.KEY=VALUE changes the config of all runs (--set.steps=20), --config.KEY=VALUE the sweep itself
(--config.seeds=0,1), --base=configs/carve_1b3.py trains that model in place of the small ones.
--dry_run lists the runs with parameters, tokens and estimated time. --count prints how many there
are, and --index=I takes the I-th of them alone, counted from 0: for array jobs, all in one DIR.
--report ends with what experiments.report says of DIR.

Examples:
  python -m experiments.sweep --config=configs/sweeps/tiny.py --workdir=sweeps/tiny --dry_run
  python -m experiments.sweep --config=configs/sweeps/tiny.py --workdir=sweeps/tiny --report
  python -m experiments.sweep --config=configs/sweeps/gdn2_vs_carve.py --workdir=sweeps/pair
      --set.steps=20 --config.seeds=0,1 --jobs=2
"""

import sys

import jax
from absl import flags

from carve_jax.training.loop import say_above_bar
from experiments import cli
from experiments.reporting.report import write_report
from experiments.sweeps.listing import chosen, summary, table
from experiments.sweeps.machine import compiled, make_slots, probe
from experiments.sweeps.plan import make_plan
from experiments.sweeps.runner import Runner
from experiments.sweeps.store import Store
from experiments.sweeps.tuner import Tuner


def define_flags() -> flags.FlagValues:
    """The command's flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "Python file of the sweep.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory of the sweep.", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "List the runs; start none.", flag_values=values)
    flags.DEFINE_integer(
        "jobs", None, "Runs at once; as many as fit by default.", 1, flag_values=values
    )
    flags.DEFINE_string("only", "*", "Pattern of the ids of the runs to take.", flag_values=values)
    flags.DEFINE_integer(
        "index", None, "Number of the run to take alone, from 0.", 0, flag_values=values
    )
    flags.DEFINE_bool("count", False, "Print the number of runs.", flag_values=values)
    flags.DEFINE_string(
        "base", None, "Config to train in place of the tasks' own.", flag_values=values
    )
    flags.DEFINE_bool(
        "allow_other_commit", False, "Go on with runs of other code.", flag_values=values
    )
    flags.DEFINE_bool("report", False, "Write the report at the end.", flag_values=values)
    return values


def main(argv: list[str]) -> None:
    """Parses the flags, checks every run, and trains them."""
    values = define_flags()
    rest = cli.parse_flags(values, argv, ("config", "set"))
    settings = ["--config." + flag[len("--set.") :] for flag in rest if flag.startswith("--set.")]
    path = cli.require(values.config, "config", "a file such as configs/sweeps/tiny.py")
    sweep = cli.load_config(path, [flag for flag in rest if not flag.startswith("--set.")])
    base = cli.load_config(values.base, [], "base") if values.base else None
    plan = make_plan(sweep, settings, base)
    runs = chosen(plan, values.only, values.index)
    if values.count:
        print(len(runs))
        return
    store = Store(cli.directory_of(values.workdir, "workdir", "the directory of the sweep"))
    facts = probe()
    # An array job has its devices to itself.
    slots = [{}] if values.index is not None else make_slots(plan, facts, values.jobs)
    if values.dry_run:
        print(table(plan, runs, store, facts, len(slots)))
        return
    store.claim(
        plan, facts, cli.command_line("sweep", argv), other_commit=values.allow_other_commit
    )
    say_above_bar(f"{len(runs)} runs, {len(slots)} at once; {plan.matched}")
    with compiled() as cache:
        cached = [cache | slot for slot in slots]
        runner = Runner(
            store, cached, commit=facts["commit"], tuner=Tuner(plan, store), say=say_above_bar
        )
        runner.run_all(runs)
    all_done = summary(store, runs)
    if values.report:
        write_report(store.workdir, allow_other_commit=values.allow_other_commit)
    if not all_done:
        sys.exit(1)


if __name__ == "__main__":
    # The devices are for the runs: a GPU that this process opened would be lost to them.
    jax.config.update("jax_platforms", "cpu")
    cli.run(main)
