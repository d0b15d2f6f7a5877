"""Trains a language model: the main job.

  python -m experiments.train --config=configs/quickstart.py --workdir=DIR [--config.KEY=VALUE …]

  python -m experiments.train --config=configs/carve_1b3.py --describe [--compare=CONFIG]

The same command again goes on from the newest checkpoint. A config may also be the config.json of
another run. DIR holds the resolved config,
metrics.jsonl, TensorBoard events, checkpoints, provenance.json and the loss curve.
With --describe nothing is trained: it prints parameters, state, FLOPs and activation bytes, beside
those of another config; CARVE's stand beside GDN-2's unless --compare says otherwise.
"""

from pathlib import Path

from absl import flags

from carve_jax.errors import UserError
from carve_jax.training.loop import train
from experiments import cli
from experiments.describe import describe, twin


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
        "With --describe: a config to set beside.",
        flag_values=definitions,
    )
    overrides = cli.parse_flags(definitions, argv)
    config = cli.load_config(
        cli.require(path.value, "config", "a file such as configs/quickstart.py"), overrides
    )
    if only_describe.value:
        other = cli.load_config(compare.value, []) if compare.value else twin(config)
        print(describe(config, other))
        return
    if compare.value:
        raise UserError("--compare is for --describe: give both, or neither")
    train(config, Path(cli.require(workdir.value, "workdir", "the directory of the run")))


if __name__ == "__main__":
    cli.run(main)
