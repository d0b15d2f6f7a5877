"""Tests the theory of CARVE: for each claim a measurement, a verdict and a figure.

  python -m experiments.theory [flags]

  solve             one triangular solve per tile: key-axis erase against value-axis erase.
  capacity          how many pairs each mixer holds.
  stability         can a state grow that nothing is written to?
  gradients         to the content gate, down the layers, back in time.
  expressivity      a task that hangs on what memory holds.
  costs             which tile and which hybrid are cheapest.
  chunk_mean        how far the mean of L outputs lies from their long-run mean.
  parallel_in_time  how many passes of GDN-2 make one of CARVE.

The verdict is computed from the measured numbers: "holds", "fails", or "holds within limits", with
the place where it fails. --output (by default a dated folder of experiments/results) gets
theory.json, and for each a PNG and an SVG. All take some four minutes on two idle cores; --quick
takes tiny sizes, which can refute no claim: one that is missed there is undecided, and verdicts and
figures say "quick".

Examples:
  python -m experiments.theory --only=solve,stability --quick --output=theory
  python -m experiments.theory
"""

import datetime
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags

from carve_jax.files import made_directory, write_atomically
from carve_jax.training.reports.provenance import describe_environment
from experiments import cli
from experiments.theory import (
    capacity,
    chunk_mean,
    costs,
    expressivity,
    figures,
    gradients,
    parallel_in_time,
    solve,
    stability,
)
from experiments.theory.finding import Experiment

FILE_NAME = "theory.json"

EXPERIMENTS: dict[str, Experiment] = {
    "solve": solve.EXPERIMENT,
    "capacity": capacity.EXPERIMENT,
    "stability": stability.EXPERIMENT,
    "gradients": gradients.EXPERIMENT,
    "expressivity": expressivity.EXPERIMENT,
    "costs": costs.EXPERIMENT,
    "chunk_mean": chunk_mean.EXPERIMENT,
    "parallel_in_time": parallel_in_time.EXPERIMENT,
}


def run(name: str, quick: bool, directory: Path) -> dict[str, Any]:
    """Measures, draws into the directory, prints the verdict; the record."""
    started = time.monotonic()
    finding = EXPERIMENTS[name].measure(quick)
    with figures.new_figure(finding.found, finding.judged(quick)) as figure:
        EXPERIMENTS[name].draw(figure, finding)
        figures.save(figure, directory / f"{name}.png")
    seconds = time.monotonic() - started
    print(f"{name}: {finding.title}: {finding.judged(quick)} ({seconds:.1f} s)\n  {finding.found}")
    for check in finding.checks:
        missed = "limit" if check.edge else "open" if quick else "MISSED"
        word = "met" if check.met else missed
        print(f"  {word:<7} {check}")
    for number in finding.numbers:
        print(f"          {number.name}: {number.value:.4g} {number.unit}".rstrip(), flush=True)
    return finding.record(name, f"{name}.png", seconds, quick)


def main(argv: list[str]) -> None:
    """Parses the flags, runs the experiments, writes the JSON and the figures."""
    values = flags.FlagValues()
    flags.DEFINE_list("only", list(EXPERIMENTS), "Names of the experiments.", flag_values=values)
    flags.DEFINE_string(
        "output",
        None,
        "Directory for the results; dated, in experiments/results, by default.",
        flag_values=values,
    )
    flags.DEFINE_bool("quick", False, "Take tiny sizes.", flag_values=values)
    cli.parse_flags(values, argv)
    names = cli.known_names("only", values.only, tuple(EXPERIMENTS))
    jax.devices()  # what is missing is said before a folder is made
    today = datetime.date.today().isoformat()
    directory = made_directory(
        values.output or cli.results_folder() / f"{today}_theory", "--output"
    )
    record: dict[str, Any] = {
        "date": today,
        **describe_environment(),
        "command": cli.command_line("theory", argv),
        "quick": values.quick,
        "experiments": [run(name, values.quick, directory) for name in names],
    }
    path = directory / FILE_NAME
    write_atomically(path, json.dumps(plain(record), indent=2, ensure_ascii=False) + "\n")
    print(f"\nwritten to {path}")


def plain(value: Any) -> Any:
    """The record with null in place of numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    cli.run(main)
