"""Kills a training run at random and compares its end with that of one left alone.

  python -m experiments.faults [flags] [--config.KEY=VALUE …]

A run is trained to its end, twice. Then it is trained again, in processes that die by SIGKILL:
anywhere from their first import on, while training, or when a checkpoint is being written. Each is
followed by the same command, as a scheduler would, until --kills of them have died; a run that
reaches its end between two kills makes room for another. At its end each must have, to the bit, the
arrays, the data position and the figures of the run that was left alone. Without --config it is a
tiny associative recall with a checkpoint every other step and the guard on; thirty kills take about
ten minutes on two cores. Exits with 1 if anything differs.

Examples:
  python -m experiments.faults --kills=30
  python -m experiments.faults --config=configs/mqar.py --config.steps=200 --output=faults.json
"""

import json
import random
import sys
import tempfile

from absl import flags

from carve_jax.errors import UserError
from carve_jax.files import made_directory, output_file, write_atomically
from carve_jax.training.reports.provenance import describe_environment
from experiments import cli
from experiments.fault_injection.kills import Trainer, torture

CONFIG = "configs/mqar.py"
TINY = {
    "model.d_model": 32, "model.layers": 1, "model.mlp_dim": 32, "model.key_dim": 8,
    "model.value_dim": 8, "batch_size": 8, "data.eval_examples": 16, "steps": 40, "log_every": 1,
    "eval_every": 10, "checkpoint_every": 2, "guard.loss_factor": 2.0, "guard.window": 5,
    "guard.limit": 40,
}  # fmt: skip


def main(argv: list[str]) -> None:
    """Parses the flags, kills and compares."""
    values = flags.FlagValues()
    flags.DEFINE_integer("kills", 30, "Processes to kill.", 1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the moments of the kills.", flag_values=values)
    flags.DEFINE_string(
        "workdir", None, "Directory for the runs; a temporary one by default.", flag_values=values
    )
    flags.DEFINE_string(
        "output", None, "JSON file for the record, if it is wanted.", flag_values=values
    )
    flags.DEFINE_string("config", None, "Python file with get_config().", flag_values=values)
    overrides = cli.parse_flags(values, argv, ("config",))
    if values.config is None:
        overrides = [*(f"--config.{name}={value}" for name, value in TINY.items()), *overrides]
    path = values.config or CONFIG
    config = cli.load_config(path, overrides)
    output = output_file(values.output) if values.output else None
    with tempfile.TemporaryDirectory() as temporary:
        directory = made_directory(values.workdir or temporary, "--workdir")
        if any(directory.iterdir()):
            raise UserError(f"--workdir {directory} is not empty: give a new one")
        trainer = Trainer(path, overrides, directory)
        record = torture(trainer, config, directory, values.kills, random.Random(values.seed))
    print(
        f"{len(record['kills'])} kills, {record['mid_save']} of them mid-save, in "
        f"{record['seconds']} s: "
        + ("something differs" if any(record["differences"]) else "every run ended the same")
    )
    if output:
        facts = describe_environment() | {"command": cli.command_line("faults", argv)}
        record = {"date": facts["started"][:10], **facts, **record}
        write_atomically(output, json.dumps(record, indent=2) + "\n")
    if any(record["differences"]):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
