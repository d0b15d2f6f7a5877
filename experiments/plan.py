"""What a run needs and costs, before anybody pays for the machine.

  python -m experiments.plan --config=configs/carve_1b3.py --chip=h100 --chips=8
      [--compare=configs/gdn2_1b3.py] [--mesh=fsdp=8] [--compile=gpu|cpu|no] [--rates=FILE.json]
      [--tokens=100e9] [--price=2.5] [--utilisation=0.4] [--config.KEY=VALUE …] [--output=FILE.json]

Compiles the whole sharded train step for GPUs that need not be there (JAX's GPU plugin:
pip install -e '.[aot]'; JAX_PLATFORMS=cpu where there is none) and says what it holds of each
device and where, how long a step takes at least, and what all the tokens cost. Data is not needed.

--compile=no estimates instead, from shapes. --compile=cpu compiles for this machine's CPU without
the kernels (XLA_FLAGS=--xla_force_host_platform_device_count=8 makes it eight devices); its memory
is another backend's. Chips: h100 and h200 are compiled for; a100-80 and b200 are estimated from an
H100's program. --rates takes what `experiments.benchmark --suite=gpu` measured in place of the
datasheet. Without --mesh it is the config's, or fsdp over all chips. Overrides hold for both
configs. --price is of one chip an hour, --utilisation the share of the chips' peak that the model's
arithmetic is assumed to reach.
"""

import contextlib
import datetime
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from carve_jax.errors import UserError
from carve_jax.files import (
    Maybe,
    check_shape,
    local_path,
    output_file,
    parse_json,
    read_text,
    reason_of,
    write_atomically,
)
from carve_jax.model import count_parameters
from carve_jax.placement import check_mesh
from carve_jax.sharding import AXES, make_mesh
from carve_jax.training.reports.provenance import describe_environment
from carve_jax.training.run import Steps, build_steps, implementation_of, make_model
from carve_jax.training.settings import nearest, read_settings
from experiments import budget, cli
from experiments.absent import absent_devices, traced_for_gpu
from experiments.budget import Rates
from experiments.chips import CHIPS, Chip, find_chip
from experiments.plan_table import table
from experiments.program import Collective, collectives
from experiments.timing import peak_bytes
from experiments.traffic import traffic
from pallas_kernels import device

HOW = ("gpu", "cpu", "no")
MOST = 12  # collectives that the record names


class Target(NamedTuple):
    """Where a run is planned for.

    Attributes:
      how: "gpu", "cpu" or "no": what the step is compiled for.
      devices: that it is compiled for; None where it is not.
    """

    name: str
    chip: Chip
    chips: int
    how: str
    devices: Any


def find_target(name: str, chips: int, how: str) -> Target:
    """The chips, and devices to compile for.

    Raises:
      UserError: an unknown chip, no chips, or nothing to compile with.
    """
    chip = find_chip(name)
    if chips < 1:
        raise UserError(f"--chips={chips}: there must be one at least")
    devices = None
    if how == "gpu":
        devices = absent_devices(CHIPS[chip.compiles_as], chips)
    elif how == "cpu":
        devices = jax.devices("cpu")[:chips]
        if len(devices) < chips:
            raise UserError(
                f"--compile=cpu needs {chips} CPU devices and there are {len(devices)}: set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={chips}, or --compile=no"
            )
    return Target(name, chip, chips, how, devices)


def mesh_sizes(text: str | None, config: ConfigDict, chips: int) -> dict[str, int]:
    """Sizes of all axes: those of the flag, else the config's, else fsdp over all chips.

    Raises:
      UserError: an unknown axis, no sizes, or sizes that do not make up the chips.
    """
    given = {axis: config.mesh.get(axis, 1) for axis in AXES}
    if text:
        given = dict.fromkeys(AXES, 1)
        for part in text.split(","):
            axis, _, size = part.partition("=")
            if axis not in AXES:
                raise UserError(f"--mesh has no axis {axis!r}; {nearest(axis, AXES)}")
            if not size.removeprefix("-").isdigit():
                raise UserError(f"--mesh={text}: give sizes as --mesh=fsdp=4,tensor=2")
            given[axis] = int(size)
    elif set(given.values()) == {1}:
        given["fsdp"] = chips
    try:
        # The positions of a grid stand for devices: sizes are told by the rule that makes meshes.
        return dict(make_mesh(given, cast(Any, range(chips))).shape)
    except ValueError as error:
        raise UserError(f"--mesh: {error}") from error


@contextlib.contextmanager
def kernels_for(target: Target) -> Iterator[None]:
    """Under it kernels are traced for the target's GPU; on the CPU there are none."""
    if target.how == "cpu":
        yield
        return
    before = os.environ.get(device.SWITCH)
    os.environ[device.SWITCH] = "compile"
    try:
        yield
    finally:
        os.environ.pop(device.SWITCH)
        if before is not None:
            os.environ[device.SWITCH] = before


def plan(config: ConfigDict, target: Target, sizes: dict[str, int], rates: Rates) -> dict[str, Any]:
    """One model's figures: bytes of a device, bytes sent, FLOPs, and seconds a step at least.

    Raises:
      UserError: a bad config, or a mesh that the model or the batch does not fit.
    """
    settings = read_settings(config)
    with kernels_for(target):
        model = make_model(config)
        try:
            check_mesh(model.config, sizes, settings.rows, settings.sequence_length)
        except ValueError as error:
            raise UserError(f"--mesh: {error}") from error
        mesh = None if target.devices is None else make_mesh(sizes, target.devices)
        steps = build_steps(settings, model, mesh)
        with _traced(target):
            memory = budget.shape_bytes(config, model.config, steps.state_shapes, sizes)
        implementation = implementation_of(
            model.config, settings.batch_size, settings.sequence_length
        )
        parameters = count_parameters(steps.state_shapes.params)["total"]
        step = budget.work(config, model.config)
        found: list[Collective] = []
        moved = None
        if mesh is None:
            sent = budget.estimated_sent_bytes(model.config, parameters, sizes, step)
            with _traced(target):
                working = budget.estimated_working_bytes(config, model.config, sizes)
        else:
            compiled = compile_step(config, steps)
            working = peak_bytes(compiled) - sum(memory.values())
            text = compiled.as_text() or ""
            found = collectives(text, target.chips)
            moved = traffic(text) if target.how == "gpu" else None
            sent = sent_bytes(found)
    weights = budget.gathered_bytes(model.config, parameters, sizes)
    return {
        "parameters": parameters,
        "implementation": implementation,
        "bytes": memory | {"working memory": working, "peak": sum(memory.values()) + working},
        "limit": target.chip.memory,
        "bytes_sent": sent,
        "collectives": [each._asdict() for each in largest(found)],
        "traffic": moved,
        "traffic_seconds": None if moved is None else moved / rates.bandwidth,
        **step._asdict(),
        "floors": budget.floors(step, memory, sent, rates, weights=weights, devices=target.chips),
    }


def _traced(target: Target) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if target.how == "cpu" else traced_for_gpu()


def compile_step(config: ConfigDict, steps: Steps) -> jax.stages.Compiled:
    """The train step for a whole batch, as training runs it."""
    whole = jax.ShapeDtypeStruct((config.batch_size, config.sequence_length), jnp.int32)
    batch = dict.fromkeys(budget.BATCH, whole)
    batch["loss_mask"] = jax.ShapeDtypeStruct(whole.shape, jnp.float32)
    return cast(Any, steps.train_step).lower(steps.state_shapes, batch).compile()


def sent_bytes(found: list[Collective]) -> dict[str, float]:
    """Of each kind of collective, bytes that a device sends in a step."""
    sent: dict[str, float] = {}
    for each in found:
        sent[each.kind] = sent.get(each.kind, 0.0) + each.sent * each.turns
    return sent


def largest(found: list[Collective]) -> list[Collective]:
    """The collectives that send most in a step, first those of most bytes."""
    return sorted(found, key=lambda each: -each.sent * each.turns)[:MOST]


def money(figures: dict[str, Any], target: Target, values: flags.FlagValues) -> dict[str, Any]:
    """Seconds a step, tokens a day, days and cost: at the floor, and at the assumed utilisation."""
    least = figures["floors"]["all"]
    peak = target.chips * target.chip.flops * values.utilisation
    likely = max(least, figures["tokens"] * figures["model_flops"] / peak)

    def told(seconds: float) -> dict[str, float]:
        a_day = 86400 * figures["tokens"] / seconds
        days = values.tokens / a_day
        cost = days * 24 * target.chips * values.price
        return {"step_seconds": seconds, "tokens_a_day": a_day, "days": days, "cost": cost}

    return {"at_the_floor": told(least), "assumed": told(likely)}


MEASURED = {
    "ceilings": {"flop_per_second": float, "bytes_per_second": float},
    "devices": Maybe([str]),
}
"""What a result of the gpu suite holds, as `check_shape` takes it."""


def find_rates(path: str | None, target: Target) -> Rates:
    """The datasheet's rates, or those that the gpu suite of the benchmark measured.

    Raises:
      UserError: a file without them.
    """
    rates = budget.datasheet_rates(target.chip, target.chips)
    if not path:
        return rates
    try:
        record = parse_json(read_text(local_path(path, "--rates")))
        check_shape(record, MEASURED)
        measured = record["ceilings"]
        found = measured["flop_per_second"], measured["bytes_per_second"]
        if not all(0 < rate < math.inf for rate in found):
            raise ValueError("a rate must be a number above 0")
    except (OSError, ValueError) as error:
        raise UserError(
            f"--rates={path} holds no measured rates ({reason_of(error)}): give a result of "
            "experiments.benchmark --suite=gpu"
        ) from error
    where = ", ".join(sorted(set(record.get("devices") or ["a device without a name"])))
    return Rates(*found, rates.sending, f"measured on {where} ({path}); sending by the datasheet")


def define_flags(values: flags.FlagValues) -> None:
    """The flags of the command."""
    flags.DEFINE_string("config", None, "Python file with get_config().", flag_values=values)
    flags.DEFINE_string("compare", None, "Another, to set beside it.", flag_values=values)
    flags.DEFINE_string("chip", "h100", "Which GPU.", flag_values=values)
    flags.DEFINE_integer("chips", 8, "How many.", flag_values=values)
    flags.DEFINE_string("mesh", None, "Sizes of its axes, as fsdp=4,tensor=2.", flag_values=values)
    flags.DEFINE_enum("compile", "gpu", HOW, "What for, if at all.", flag_values=values)
    flags.DEFINE_string("rates", None, "A result of the gpu suite.", flag_values=values)
    flags.DEFINE_float("tokens", 100e9, "To train on.", 1.0, flag_values=values)
    flags.DEFINE_float("price", 2.5, "Of a chip an hour.", 0.0, flag_values=values)
    flags.DEFINE_float("utilisation", 0.4, "Of the peak.", 0.01, 1.0, flag_values=values)
    flags.DEFINE_string("output", None, "Where the JSON goes, if at all.", flag_values=values)


def main(argv: list[str]) -> None:
    """Parses the flags, plans one run or two, prints the table and writes the JSON."""
    values = flags.FlagValues()
    define_flags(values)
    overrides = cli.parse_flags(values, argv)
    first = cli.require(values.config, "config", "a file such as configs/carve_1b3.py")
    paths = [first, *([values.compare] if values.compare else [])]
    configs = [cli.load_config(path, overrides) for path in paths]
    target = find_target(values.chip, values.chips, values.compile)
    output = output_file(values.output) if values.output else None
    rates = find_rates(values.rates, target)
    found: dict[str, Any] = {}
    for path, config in zip(paths, configs, strict=True):
        sizes = mesh_sizes(values.mesh, config, target.chips)
        figures = plan(config, target, sizes, rates)
        name = Path(path).stem if Path(path).stem not in found else path
        found[name] = {"mesh": sizes, **figures, **money(figures, target, values)}
    record = {
        "date": datetime.date.today().isoformat(),
        "chip": target.name,
        "kind": target.chip.kind,
        "chips": target.chips,
        "compiled_for": _compiled_for(target),
        "rates": rates._asdict(),
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


def _compiled_for(target: Target) -> str | None:
    if target.how == "gpu":
        return CHIPS[target.chip.compiles_as].kind
    return "this machine's CPU" if target.how == "cpu" else None


if __name__ == "__main__":
    cli.run(main)
