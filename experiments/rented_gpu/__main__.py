"""Compiles, checks, times, profiles and tunes the kernels on this GPU in --minutes.

  python -m experiments.rented_gpu [flags]

Made for a card that is rented by the hour: everything that compiles goes first, side by side on all
cores; then correctness, timings against the peers, train steps, time by kernel, and the tile
search (experiments/rented_gpu/stages.py is the list). Each result is saved as it comes, to one JSON
in DIR for this commit and card; run again, the command goes on with what is missing: first with a
table of 1.3B train steps, ours and the peers'. What does not fit into the minutes is listed with
the reason. DIR (experiments/results/rented_gpu by default) also
takes tiles.json, the table with the tiles found, and log.txt, what the processes printed.

As many processes compile side by side as there are cores and as memory holds; --processes sets
their number, for a virtual machine whose memory grows as it is used, say.

Compiled programs go to $JAX_COMPILATION_CACHE_DIR (.jax_cache by default). Exits with 1 if the
kernels compute wrong numbers here.

Examples:
  python -m experiments.rented_gpu --minutes=9
  python -m experiments.rented_gpu --minutes=4 --only=correctness --output=rented
  python -m experiments.rented_gpu --minutes=20 --only="train steps,step table"
"""

import os
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from carve_jax.errors import UserError
from carve_jax.files import held, made_directory
from carve_jax.training.settings import nearest
from experiments import cli
from experiments.rented_gpu import summary
from experiments.rented_gpu.record import Record
from experiments.rented_gpu.schedule import Running, Schedule, Stage, Task, needed
from experiments.rented_gpu.stages import STAGES, TASKS, Machine, make_stages
from experiments.rented_gpu.worker import LEFT_OUT

OUTPUT = cli.results_folder() / "rented_gpu"
RESERVE = 5.0  # seconds for the summary
PROBE_SECONDS = 90.0
# Largest of one process while it compiles: of the machine's memory, and of the card's.
HOST_BYTES, CARD_BYTES = 4e9, 2e9


class WrongNumbers(UserError):
    """The kernels compute something else than the rule on this card."""

    exit_code = 1


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_float(
        "minutes", 9.0, "Minutes that all of it may take.", lower_bound=0.1, flag_values=values
    )
    flags.DEFINE_string("output", str(OUTPUT), "Directory for the results.", flag_values=values)
    flags.DEFINE_integer(
        "processes",
        None,
        "Processes that compile side by side; by cores and memory by default.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_list(
        "only", [], f"Stages to run, of {', '.join(STAGES)}; all by default.", flag_values=values
    )


def environment(cache: Path) -> dict[str, str]:
    """The processes' environment: one cache for all that compiles; memory is taken as needed."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(cache / "triton")),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_TRACEBACK_FILTERING": "off",  # else the last line, which is kept, is of the filter
        "PYTHONUNBUFFERED": "1",
    }


def slots(cores: int, host_bytes: float, card_bytes: float | None) -> int:
    """Processes that compile side by side: one per core, as far as memory goes."""
    fit = [host_bytes // HOST_BYTES, *([card_bytes // CARD_BYTES] if card_bytes else [])]
    return max(1, min(cores, *map(int, fit)))


def host_bytes() -> float:
    """Memory of the machine."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def find_machine(folder: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """Card, commit and versions, from a process of its own: this one leaves the card alone.

    Raises:
      UserError: there is no NVIDIA GPU, or asking for one takes too long.
    """
    task = Task("probe", f"{TASKS}:probe")
    probe = Running(task, folder, variables)
    while (code := probe.poll()) is None and probe.seconds < PROBE_SECONDS:
        time.sleep(0.05)
    probe.stop()
    facts, said = probe.new_figures(), probe.close().strip().splitlines()
    if code is None:
        raise UserError(f"JAX found no device within {PROBE_SECONDS:.0f} s: is the driver well?")
    if code == LEFT_OUT:
        raise UserError(said[-1])
    if code != 0 or facts is None:
        raise UserError(f"JAX cannot be started here: {said[-1] if said else f'exit code {code}'}")
    return facts


def check_stages(only: list[str]) -> None:
    """Raises UserError for a name of --only that is no stage's."""
    for name in only:
        if name not in STAGES:
            raise UserError(f"--only: unknown stage {name!r}; {nearest(name, STAGES)}")


def main(argv: list[str]) -> None:
    """Parses the flags, runs the stages, prints a table."""
    started = time.monotonic()
    values = flags.FlagValues()
    define_flags(values)
    cli.parse_flags(values, argv)
    check_stages(values.only)
    deadline = started + 60 * values.minutes - RESERVE
    cache = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", ".jax_cache")).absolute()
    output, variables = made_directory(values.output, "--output").absolute(), environment(cache)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does
    with tempfile.TemporaryDirectory() as name, held(output / ".lock", str(output)):
        facts = find_machine(Path(name), variables)
        facts["command"] = cli.command_line("rented_gpu", argv)
        record = Record(output, facts)
        record.use_cache(cache)
        room = values.processes or slots(cli.usable_cores(), host_bytes(), facts["device_bytes"])
        stages = make_stages(Machine(record.card, room, output / "tiles.json"))
        print(f"{record.card}, {room} processes side by side; results go to {record.path}")
        with (output / "log.txt").open("a", buffering=1, encoding="utf-8") as log:
            run_stages(
                tuple(s for s in stages if not values.only or s.name in values.only),
                Schedule(
                    record,
                    deadline,
                    slots=room,
                    folder=Path(name),
                    environment=variables,
                    log=log.write,
                ),
            )
        tasks = [t for stage in stages for t in stage.tasks if needed(t, record) and not t.spare]
        figures = summary.collect(record)
        missing = record.close([task.name for task in tasks], figures)
    summary.show(record, figures, missing)
    print(f"\nwritten to {record.path}")
    if figures["wrong"]:
        raise WrongNumbers(f"the kernels are wrong on this {record.card}: {figures['wrong'][0]}")


def run_stages(stages: tuple[Stage, ...], schedule: Schedule) -> None:
    """All of them, or as many as the user has the patience for."""
    try:
        schedule.run(stages)
    except KeyboardInterrupt:
        print("\nstopped; what was found is kept")


if __name__ == "__main__":
    cli.run(main)
