"""What a run needs and costs, before anybody pays for the machine.

  python -m experiments.plan --config=CONFIG [--compare=CONFIG] [--chip=h100] [--chips=8] [flags]
      [--config.KEY=VALUE …]
  python -m experiments.plan --few_heads [--output=FILE.json]

Compiles the whole sharded train step for GPUs that need not be there (JAX's GPU plugin:
pip install -e '.[aot]'; JAX_PLATFORMS=cpu where there is none) and says what it holds of each
device and where, how long a step takes at least, and what all the tokens cost. Data is not needed.

--compile=no estimates instead, from shapes. --compile=cpu compiles for this machine's CPU without
the kernels (XLA_FLAGS=--xla_force_host_platform_device_count=8 makes it eight devices); its memory
is another backend's. Chips: h100 and h200 are compiled for; a100-80 and b200 are estimated from an
H100's program. --rates takes what `experiments.benchmark --suite=gpu` measured in place of the
datasheet. Without --mesh it is the config's, or fsdp over all chips. Overrides hold for both
configs. --price is that of one chip per hour, --utilisation the share of the chips' peak that the
model's arithmetic is assumed to reach.

--anatomy takes the compiled step apart instead: FLOPs, bytes and milliseconds of projections, MLP,
attention, loss, convolutions, gates and norms, the rule forward, again and backward, optimizer,
copies and collectives, and what is done twice. It predicts, on any machine, at the rates that a
copy and a product were measured to reach (--rates takes others) and with the times that
`pallas_kernels.compiling` predicts of the kernels; the profiler is `experiments.train
--config.profile_steps`. --output keeps the entries of other configs that its file has, one for each
config, `remat` and choice to unroll the layers.

--few_heads needs no config and compiles nothing: it predicts both rules' times on an H100 by rows ×
heads, and what scanning in stretches (`Tiles.stretches`) would save, from the kernels' record.

Examples:
  python -m experiments.plan --config=configs/carve_1b3.py --compare=configs/gdn2_1b3.py
  python -m experiments.plan --config=configs/carve_1b3.py --chips=16 --mesh=fsdp=16 --price=3
  python -m experiments.plan --anatomy --chips=1 --config=configs/gdn2_1b3.py
      --config.batch_size=4 --config.model.remat=rule_and_dots --config.model.scan_layers=False
"""

import datetime
import json
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from carve_jax.errors import UserError
from carve_jax.files import output_file, write_atomically
from carve_jax.training.reports.provenance import describe_environment
from experiments import cli
from experiments.planning import few_heads, step_anatomy
from experiments.planning.rates import Rates, find_rates, reached_rates
from experiments.planning.run_plan import money, plan_run
from experiments.planning.step_anatomy import anatomise
from experiments.planning.table import table
from experiments.planning.target import HOW, Target, find_target, mesh_sizes


def define_flags(values: flags.FlagValues) -> None:
    """The flags of the command."""
    flags.DEFINE_string("config", None, "Python file with get_config().", flag_values=values)
    flags.DEFINE_string("compare", None, "Another config, to set beside it.", flag_values=values)
    flags.DEFINE_string(
        "chip", "h100", "Kind of GPU: h100, h200, a100-80 or b200.", flag_values=values
    )
    flags.DEFINE_integer("chips", 8, "Number of GPUs.", flag_values=values)
    flags.DEFINE_string(
        "mesh", None, "Sizes of the mesh's axes, as fsdp=4,tensor=2.", flag_values=values
    )
    flags.DEFINE_enum("compile", "gpu", HOW, "What to compile for, if at all.", flag_values=values)
    flags.DEFINE_boolean(
        "anatomy", False, "Take the compiled step apart instead.", flag_values=values
    )
    flags.DEFINE_boolean(
        "few_heads", False, "Predict the rules by rows and heads instead.", flag_values=values
    )
    flags.DEFINE_string(
        "rates",
        None,
        "JSON of experiments.benchmark --suite=gpu, in place of the datasheet.",
        flag_values=values,
    )
    flags.DEFINE_float("tokens", 100e9, "Tokens to train on.", 1.0, flag_values=values)
    flags.DEFINE_float("price", 2.5, "Price of a GPU per hour.", 0.0, flag_values=values)
    flags.DEFINE_float(
        "utilisation", 0.4, "Share of the peak that is reached.", 0.01, 1.0, flag_values=values
    )
    flags.DEFINE_string("output", None, "File for the JSON, if it is wanted.", flag_values=values)


def take_apart(
    configs: list[tuple[str, ConfigDict]],
    target: Target,
    values: flags.FlagValues,
    output: Path | None,
    argv: list[str],
) -> None:
    """The anatomy of each config's step: printed, and added to the JSON."""
    given = values.rates, target.chip, target.chips
    rates = find_rates(*given) if values.rates else reached_rates(*given[1:])
    found: dict[str, Any] = {}
    for path, config in configs:
        entry = anatomise(config, target, mesh_sizes(values.mesh, config, target.chips), rates)
        loop = "" if entry["scan_layers"] else ", unrolled"
        found[f"{Path(path).stem}, remat={entry['remat']}{loop}"] = {
            **_conditions(target, rates),
            **entry,
            **describe_environment(),
            "command": cli.command_line("plan", argv),
        }
    print(step_anatomy.table(found))
    if output:
        content = step_anatomy.add_entries(output, found)
        write_atomically(output, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        print(f"\nwritten to {output}")


def by_heads(values: flags.FlagValues, argv: list[str]) -> None:
    """The rules by rows × heads: printed, and written as JSON."""
    output = output_file(values.output) if values.output else None
    record = {
        "date": datetime.date.today().isoformat(),
        **few_heads.few_heads(),
        **describe_environment(),
        "command": cli.command_line("plan", argv),
    }
    print(few_heads.table(record))
    if output:
        write_atomically(output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        print(f"\nwritten to {output}")


def require_alone(values: flags.FlagValues) -> None:
    """Raises UserError for a flag that --few_heads would pass over."""
    known = ("few_heads", "output")
    for name in values:
        if name not in known and values[name].present:
            raise UserError(
                f"--few_heads is of one H100 and known sizes, and takes no --{name}: leave it out, "
                "or plan a run without --few_heads"
            )


def main(argv: list[str]) -> None:
    """Parses the flags, plans one run or two, prints the table and writes the JSON."""
    values = flags.FlagValues()
    define_flags(values)
    overrides = cli.parse_flags(values, argv, ("config",))
    if values.few_heads:
        require_alone(values)
        by_heads(values, argv)
        return
    first = cli.require(values.config, "config", "a file such as configs/carve_1b3.py")
    paths = {"config": first, "compare": values.compare}
    configs = [
        (path, cli.load_config(path, overrides, flag)) for flag, path in paths.items() if path
    ]
    target = find_target(values.chip, values.chips, values.compile)
    output = output_file(values.output) if values.output else None
    if values.anatomy:
        take_apart(configs, target, values, output, argv)
        return
    rates = find_rates(values.rates, target.chip, target.chips)
    found: dict[str, Any] = {}
    for path, config in configs:
        sizes = mesh_sizes(values.mesh, config, target.chips)
        figures = plan_run(config, target, sizes, rates)
        name = Path(path).stem if Path(path).stem not in found else path
        cost = money(
            figures,
            target,
            tokens=values.tokens,
            price=values.price,
            utilisation=values.utilisation,
        )
        found[name] = {"mesh": sizes, **figures, **cost}
    record = {
        **_conditions(target, rates),
        "total_tokens": values.tokens,
        "price": values.price,
        "utilisation": values.utilisation,
        **describe_environment(),
        "command": cli.command_line("plan", argv),
        "models": found,
    }
    print(table(record))
    if output:
        write_atomically(output, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        print(f"\nwritten to {output}")


def _conditions(target: Target, rates: Rates) -> dict[str, Any]:
    """Conditions of a record: when, for what chips, and at which rates."""
    return {
        "date": datetime.date.today().isoformat(),
        "chip": target.name,
        "kind": target.chip.kind,
        "chips": target.chips,
        "compiled_for": target.compiled_for,
        "rates": rates._asdict(),
    }


if __name__ == "__main__":
    cli.run(main)
