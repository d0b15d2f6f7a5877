"""Measures a trained model on its held-out documents.

  python -m experiments.evaluate --workdir=DIR [--step=N|best] [--tasks=perplexity]

Prints a table and writes DIR/evaluation_STEP.json.
"""

import json
from pathlib import Path
from typing import Any

import jax
from absl import flags

from carve_jax.errors import UserError
from carve_jax.evaluation.perplexity import perplexity
from carve_jax.training.metrics import write_atomically
from carve_jax.training.run import Trained, build_pipeline, load_trained
from carve_jax.training.settings import nearest
from carve_jax.training.step import make_loss
from experiments import cli


def held_out_perplexity(trained: Trained) -> dict[str, Any]:
    """Loss and bits per byte over all held-out documents, each whole."""
    pipeline = build_pipeline(trained.config, trained.model)
    loss = jax.jit(make_loss(trained.model, loss_chunk=trained.config.loss_chunk))
    figures = perplexity(loss, trained.params, pipeline.eval_batches())
    return {**figures, "data": pipeline.describe()}


def print_table(figures: dict[str, Any]) -> None:
    """One line a number; facts that are no numbers are left to the JSON."""
    for name, value in figures.items():
        if isinstance(value, float):
            print(f"  {name:<15} {value:>14,.4f}")
        elif isinstance(value, int):
            print(f"  {name:<15} {value:>14,}")


TASKS = {"perplexity": held_out_perplexity}


def main(argv: list[str]) -> None:
    """Parses the flags, measures, prints and writes."""
    definitions = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", None, "Directory of a run.", flag_values=definitions)
    step = flags.DEFINE_string(
        "step", None, "Checkpoint: a step, or best; newest by default.", flag_values=definitions
    )
    tasks = flags.DEFINE_list(
        "tasks", ["perplexity"], f"Any of: {', '.join(TASKS)}.", flag_values=definitions
    )
    cli.refuse_unknown(cli.parse_flags(definitions, argv), definitions)
    for name in tasks.value:
        if name not in TASKS:
            raise UserError(f"--tasks: unknown task {name!r}; {nearest(name, TASKS)}")
    directory = Path(cli.require(workdir.value, "workdir", "the directory of a run"))
    trained = load_trained(directory, step=cli.checkpoint_step(step.value))
    results = {name: TASKS[name](trained) for name in tasks.value}
    path = directory / f"evaluation_{trained.step}.json"
    write_atomically(path, json.dumps({"step": trained.step, **results}, indent=2) + "\n")
    for name, figures in results.items():
        print(f"{name} at step {trained.step}")
        print_table(figures)
    print(f"written to {path}")


if __name__ == "__main__":
    cli.run(main)
