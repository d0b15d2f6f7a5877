"""Trains a language model: the main job.

  python -m experiments.train --config=configs/quickstart.py --workdir=DIR [--config.KEY=VALUE …]

The same command again goes on from the newest checkpoint. DIR holds the resolved config,
metrics.jsonl, TensorBoard events, checkpoints, provenance.json and the loss curve.
"""

from pathlib import Path

from absl import flags

from carve_jax.training.loop import train
from experiments import cli


def main(argv: list[str]) -> None:
    """Parses the flags and trains; see `cli.call` for exit codes."""
    definitions = flags.FlagValues()
    path = flags.DEFINE_string(
        "config", None, "Python file with get_config().", flag_values=definitions
    )
    workdir = flags.DEFINE_string(
        "workdir", None, "Directory of the run: new, or one to go on with.", flag_values=definitions
    )
    overrides = cli.parse_flags(definitions, argv)
    config = cli.load_config(
        cli.require(path.value, "config", "a file such as configs/quickstart.py"), overrides
    )
    train(config, Path(cli.require(workdir.value, "workdir", "the directory of the run")))


if __name__ == "__main__":
    cli.run(main)
