"""Times the rule against its peers, and sets the figures beside the machine's floors.

  python -m experiments.benchmark [--suite=cpu|gpu|tune|decode|data|ruler|evaluate] [flags]

Contenders take turns within one run, after a warm-up; medians are reported, the ratio first. The
JSON goes to experiments/results/ unless --output says where. Suites:

  cpu   plain XLA against ejkernel and the oracle.
  gpu   the kernels against flash-linear-attention and jax-linear-attention, a decode step against
        a copy, and a train step of 1.3B parameters with CARVE and with GDN-2 (--train_step=false
        leaves it out); for a rented card, see `python -m experiments.rented_gpu`.
  tune  searches the kernels' tiles and writes the best for this device to --table.
  decode  whole models writing 100,000 tokens: bytes of caches, arrays and process, and milliseconds
        per token, at the lengths of --tokens.
  ruler  whole models asked one of RULER's probes, at the lengths of --tokens: seconds, and bytes of
        caches and process.
  evaluate  scores and continuations as experiments.evaluate makes them: tokens per second as a
        share of the forward pass's, and seconds and bytes for one document at the lengths of
        --tokens.
  data  token files read into batches, against what carve_1b3 on eight H100s would eat, and text
        prepared by 1, 2, … processes.

--only=PART[,PART…] keeps the parts of gpu (such as 8x4096x16x128, decode, train_step), of tune
(bfloat16/128/carve), of decode, ruler and evaluate (carve) or of data (read, prepare) whose
names hold one of these texts.

Examples:
  python -m experiments.benchmark --suite=cpu
  python -m experiments.benchmark --suite=decode --only=carve --tokens=1024,4096
  python -m experiments.benchmark --suite=gpu --train_step=false --output=gpu.json
"""

import datetime
import json
import os
from typing import Any

from absl import flags

from carve_jax.errors import UserError
from carve_jax.files import local_path, output_file, write_atomically
from carve_jax.training.reports.provenance import describe_environment
from carve_jax.training.settings import nearest
from experiments import cli
from experiments.benchmarks.suites import SUITES, Options
from pallas_kernels.tiling import TABLE


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("suite", "cpu", f"What to time: {', '.join(SUITES)}.", flag_values=values)
    flags.DEFINE_integer("repeats", 15, "Rounds that are timed.", lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        "output",
        None,
        "File for the JSON; dated, in experiments/results, by default.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "only", [], "Texts that the names of the parts to keep hold.", flag_values=values
    )
    flags.DEFINE_bool("train_step", True, "gpu: time whole train steps too.", flag_values=values)
    flags.DEFINE_list(
        "tokens", [], "decode, ruler, evaluate: lengths in tokens.", flag_values=values
    )
    flags.DEFINE_string(
        "table", str(TABLE), "tune: the file of the table of tiles.", flag_values=values
    )


def main(argv: list[str]) -> None:
    """Parses the flags, measures, prints a table and writes the JSON."""
    values = flags.FlagValues()
    define_flags(values)
    cli.parse_flags(values, argv)
    if values.suite not in SUITES:
        raise UserError(f"--suite: unknown suite {values.suite!r}; {nearest(values.suite, SUITES)}")
    today = datetime.date.today().isoformat()
    path = output_file(values.output or cli.results_folder() / f"{today}_{values.suite}.json")
    # PyTorch's peers need room beside JAX; read when JAX first touches a device, which is below.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    environment = describe_environment()
    environment["command"] = cli.command_line("benchmark", argv)

    def save(figures: dict[str, Any]) -> None:
        record = {"date": today, "suite": values.suite, **environment, **figures}
        write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    options = Options(
        repeats=values.repeats,
        only=tuple(values.only),
        train_step=values.train_step,
        table=local_path(values.table, "--table"),
        tokens=values.tokens,
        save=save,
    )
    save(SUITES[values.suite](options))
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    cli.run(main)
