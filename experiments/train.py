"""Trains a language model: the main job.

  python -m experiments.train --config=CONFIG --workdir=DIR [--config.KEY=VALUE …]
  python -m experiments.train --config=CONFIG --describe [--compare=CONFIG]

The same command again goes on from the newest checkpoint. A config may also be the config.json of
another run. DIR holds the resolved config, metrics.jsonl, TensorBoard events, checkpoints,
provenance.json and the loss curve.

On several machines, or in several processes of one, the same command runs in each, with
--config.mesh and --distributed (SLURM's srun, Open MPI, TPU), or with --coordinator=HOST:PORT of
the first, --processes=N and --process=0 to N-1 (in a Kubernetes indexed Job that is known); see
experiments/launch/.

With --describe nothing is trained: it prints parameters, state, FLOPs and activation bytes, beside
those of another config; CARVE's stand beside GDN-2's unless --compare says otherwise.

Examples:
  python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart
  python -m experiments.train --config=configs/quickstart.py --workdir=runs/longer
      --config.steps=2000 --config.optimizer.peak_learning_rate=1e-3
  python -m experiments.train --config=configs/carve_1b3.py --describe
"""

from collections.abc import Callable

from absl import flags

from carve_jax.errors import UserError
from carve_jax.training.loop import train
from carve_jax.training.processes import distributed
from carve_jax.training.processes.messages import together
from experiments import cli, compile_cache
from experiments.freed_memory import keep_freed
from experiments.planning.describe import describe, twin


def main(argv: list[str]) -> None:
    """Parses the flags and trains; see `cli.call` for exit codes."""
    definitions = flags.FlagValues()
    path = flags.DEFINE_string(
        "config",
        None,
        "Python file with get_config(), or config.json of a run.",
        flag_values=definitions,
    )
    workdir = flags.DEFINE_string(
        "workdir", None, "Directory of the run: new, or one to go on with.", flag_values=definitions
    )
    only_describe = flags.DEFINE_bool(
        "describe", False, "Print what the model costs; train nothing.", flag_values=definitions
    )
    compare = flags.DEFINE_string(
        "compare",
        None,
        "With --describe: the config to set beside it; by default CARVE's stand beside GDN-2's.",
        flag_values=definitions,
    )
    peers = define_peers(definitions)
    overrides = cli.parse_flags(definitions, argv, ("config",))
    if compare.value and not only_describe.value:
        raise UserError("--compare is for --describe: give both, or neither")
    others = None if only_describe.value else peers()
    if others is not None:
        compile_cache.keep_none_by_default()
    with distributed.joined(others):
        with together():
            config = cli.load_config(
                cli.require(path.value, "config", "a file such as configs/quickstart.py"), overrides
            )
            if only_describe.value:
                other = (
                    cli.load_config(compare.value, [], "compare") if compare.value else twin(config)
                )
                print(describe(config, other))
                return
            directory = cli.directory_of(workdir.value, "workdir", "the directory of the run")
        train(config, directory)


def define_peers(definitions: flags.FlagValues) -> Callable[[], distributed.Peers | None]:
    """Defines the flags that tell of other processes; call the result once they are parsed."""
    coordinator = flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of the first process, where there are several.",
        flag_values=definitions,
    )
    processes = flags.DEFINE_integer(
        "processes", None, "Number of processes.", flag_values=definitions
    )
    process = flags.DEFINE_integer(
        "process", None, "Number of this process, from 0.", flag_values=definitions
    )
    detect = flags.DEFINE_bool(
        "distributed",
        False,
        "Let the cluster say the coordinator, the processes and which this is.",
        flag_values=definitions,
    )
    timeout = flags.DEFINE_integer(
        "peer_timeout",
        300,
        "Seconds that the processes wait for each other at the start.",
        flag_values=definitions,
    )
    return lambda: distributed.peers_of(
        coordinator.value, processes.value, process.value, detect.value, timeout.value
    )


if __name__ == "__main__":
    keep_freed()
    cli.run(main)
