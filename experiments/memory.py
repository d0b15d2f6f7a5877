"""Device memory of GDN-2 and CARVE, compiled for an H100 that need not be there.

  python -m experiments.memory [flags]

Nothing runs: XLA compiles forward and backward of the rule, of its layer, and whole train steps of
two layers, all at the official layer's sizes, and says what the programs hold. It needs JAX's GPU
plugin (pip install -e '.[aot]') and no GPU; without one, JAX_PLATFORMS=cpu keeps JAX from looking
for it.

Examples:
  python -m experiments.memory
  python -m experiments.memory --implementations=pallas --programs=rule,layer --output=memory.json
"""

import datetime
import json
import os

from absl import flags

from carve_jax.files import output_file, write_atomically
from carve_jax.ops.gated_delta import IMPLEMENTATIONS
from carve_jax.training.reports.provenance import describe_environment
from experiments import cli
from experiments.measuring.rule_calls import LAYER
from experiments.planning.ahead_of_time import KIND, absent_h100, traced_for_gpu
from experiments.planning.device_memory import MODEL, PROGRAMS, measure
from pallas_kernels import device


def main(argv: list[str]) -> None:
    """Parses the flags, compiles, prints a table and writes the JSON."""
    values = flags.FlagValues()
    implementations = ["pallas", "chunked"]
    flags.DEFINE_list(
        "implementations", implementations, "Implementations of the rule.", flag_values=values
    )
    flags.DEFINE_list("programs", list(PROGRAMS), "Programs that are compiled.", flag_values=values)
    flags.DEFINE_string(
        "output",
        None,
        "File for the JSON; dated, in experiments/results, by default.",
        flag_values=values,
    )
    cli.parse_flags(values, argv)
    programs = cli.known_names("programs", values.programs, tuple(PROGRAMS))
    chosen = cli.known_names("implementations", values.implementations, IMPLEMENTATIONS)
    today = datetime.date.today().isoformat()
    path = output_file(values.output or cli.results_folder() / f"{today}_memory.json")
    place = absent_h100()
    os.environ[device.SWITCH] = "compile"  # kernels are traced for a GPU that need not be there
    with traced_for_gpu():
        found = measure(place, programs, chosen)
    record = {
        "date": today,
        "compiled_for": KIND,
        "shape": LAYER._asdict(),
        "model": MODEL,
        **describe_environment(),
        "command": cli.command_line("memory", argv),
        "bytes": found,
    }
    write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    cli.run(main)
