"""Times the rule against its peers, and sets the figures beside the machine's floors.

  python -m experiments.benchmark [--suite=cpu|gpu|tune|decode|data|ruler|evaluate]
                                  [--repeats=15] [--output=FILE.json]

Contenders take turns within one run, after a warm-up; medians are reported, the ratio first. The
JSON goes to experiments/results/ unless --output says where. Suites:

  cpu   plain XLA against ejkernel and the oracle.
  gpu   the kernels against flash-linear-attention and jax-linear-attention, a decode step against
        a copy, and a train step of 1.3B parameters with CARVE and with GDN-2 (--train_step=false
        leaves it out); for a rented card, see `python -m experiments.rented_gpu`.
  tune  searches the kernels' tiles and writes the best for this device to --table.
  decode  whole models writing 100,000 tokens: bytes of caches, arrays and process, and milliseconds
        a token, at the lengths of --tokens.
  ruler  whole models asked one of RULER's probes, at the lengths of --tokens: seconds, and bytes of
        caches and process.
  evaluate  scores and continuations as experiments.evaluate makes them: tokens a second as a share
        of the forward pass's, and seconds and bytes for one document at the lengths of --tokens.
  data  token files read into batches, against what carve_1b3 on eight H100s would eat, and text
        prepared by 1, 2, … processes.

--only=PART[,PART…] keeps the parts of gpu (such as 8x4096x16x128, decode, train_step), of tune
(bfloat16/128/carve), of decode, ruler and evaluate (carve) or of data (read, prepare) whose
names hold one of these texts.
"""

import dataclasses
import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from carve_jax.errors import UserError
from carve_jax.files import local_path, output_file, write_atomically
from carve_jax.training.reports.provenance import describe_environment
from carve_jax.training.settings import nearest
from experiments import benchmark_data, benchmark_evaluate, benchmark_ruler, cli
from experiments.benchmark_decode import decode_suite, make_plan
from experiments.benchmark_gpu import Plan, gpu_suite
from experiments.contenders import TILE, Shape, ours, rule_inputs
from experiments.peers import ejkernel
from experiments.timing import Contender, machine_ceilings, median_seconds, ratio
from experiments.tune import tune_suite
from pallas_kernels.tiling import TABLE

__all__ = ["Shape", "ejkernel", "main", "ours", "ratio", "rule_inputs"]

RESULTS = Path(__file__).parent / "results"


def floors(shape: Shape, ceilings: dict[str, float], tile: int = TILE) -> dict[str, float]:
    """Least work of GDN-2 forward and backward, and the time it takes at the measured rates.

    Arithmetic, for a token and head with tiles of C and K = V = D, counting triangles as halves:
    forward 4 products of C·D (P, T, the solve, PR) and 3 of 2·D² (Ē S, qS, the state); backward
    recomputes 3 and 2·D² once (T, P, R), then 8 of C·D (dP, dT, two for R, four for the scores)
    and 6 of 2·D². Exponentials are not counted. Bytes: inputs read twice, the output written, its
    gradient read, the inputs' gradients written; states and temporaries are not counted.
    """
    tokens = shape.batch * shape.length * shape.heads
    d = shape.channels
    flop = tokens * ((4 + 3 + 8) * tile * d + (3 + 1 + 6) * 2 * d * d)
    moved = tokens * d * 4 * (2 * 6 + 2 + 6)
    return {
        "flop": flop,
        "bytes": moved,
        "arithmetic_seconds": flop / ceilings["flop_per_second"],
        "bytes_seconds": moved / ceilings["bytes_per_second"],
    }


def cpu_suite(repeats: int) -> dict[str, Any]:
    """Forward and backward at T 2048 against the peer and the oracle, then growth to T 16384."""
    shape, long = Shape(1, 2048, 4, 64), Shape(1, 16384, 4, 64)
    ceilings = machine_ceilings(repeats)
    contenders: dict[str, Contender] = {
        "gdn2 chunked": ours(shape, "gdn2", "chunked"),
        "carve chunked": ours(shape, "carve", "chunked"),
        "gdn2 recurrent": ours(shape, "gdn2", "recurrent"),
        "gdn2 chunked forward": ours(shape, "gdn2", "chunked", backward=False),
        "carve chunked forward": ours(shape, "carve", "chunked", backward=False),
    }
    notes = {}
    peer = ejkernel(shape)
    if isinstance(peer, str):
        notes["ejkernel"] = peer
        print(f"ejkernel: {peer}")
    else:
        contenders["ejkernel gdn"] = peer
    seconds = median_seconds(contenders, repeats)

    growth = {"gdn2": {}, "carve": {}}  # type: dict[str, dict[str, float]]
    for rule, figures in growth.items():
        pair = {"short": contenders[f"{rule} chunked"], "long": ours(long, rule, "chunked")}
        times = median_seconds(pair, max(3, repeats // 2))
        figures["time_ratio"] = round(times["long"] / times["short"], 3)
        figures["memory_ratio"] = round(pair["long"].peak_bytes / pair["short"].peak_bytes, 3)

    ratios = {
        "gdn2 chunked / ejkernel gdn": ratio(seconds, "gdn2 chunked", "ejkernel gdn"),
        "gdn2 recurrent / gdn2 chunked": ratio(seconds, "gdn2 recurrent", "gdn2 chunked"),
        "carve chunked / gdn2 chunked": ratio(seconds, "carve chunked", "gdn2 chunked"),
    }
    least = floors(shape, ceilings)
    print_table(ratios, growth, seconds, contenders, least)
    return {
        "shape": {**shape._asdict(), "dtype": "float32", "pass": "forward and backward"},
        "ratios": ratios,
        "growth_2048_to_16384": growth,
        "median_seconds": seconds,
        "peak_bytes": {name: c.peak_bytes for name, c in contenders.items()},
        "floor_gdn2": least,
        "ceilings": ceilings,
        "repeats": repeats,
        "skipped": notes,
    }


def print_table(
    ratios: dict[str, float | None],
    growth: dict[str, dict[str, float]],
    seconds: dict[str, float],
    contenders: dict[str, Contender],
    least: dict[str, float],
) -> None:
    """Ratios first, then what they are made of."""
    for name, value in ratios.items():
        print(f"{name:<34} {'skipped' if value is None else f'{value:.2f}':>10}")
    for rule, figures in growth.items():
        for what, value in figures.items():
            print(f"{rule + ' T 2048→16384, ' + what.replace('_', ' '):<34} {value:>10.2f}")
    print(f"\n{'T 2048':<34} {'median ms':>10} {'peak MB':>10}")
    for name, value in seconds.items():
        print(f"{name:<34} {1e3 * value:>10.2f} {contenders[name].peak_bytes / 1e6:>10.1f}")
    print(f"{'floor of gdn2, arithmetic':<34} {1e3 * least['arithmetic_seconds']:>10.2f}")
    print(f"{'floor of gdn2, bytes':<34} {1e3 * least['bytes_seconds']:>10.2f}")


class Options(NamedTuple):
    """What a suite is told.

    Attributes:
      repeats: timed rounds.
      only: parts to keep; all if empty.
      train_step: whether gpu times one.
      table: where tune writes.
      tokens: lengths at which decode, ruler and evaluate look.
      save: called with the figures so far.
    """

    repeats: int
    only: tuple[str, ...]
    train_step: bool
    table: Path
    tokens: list[str]
    save: Callable[[dict[str, Any]], None]


def run_cpu(options: Options) -> dict[str, Any]:
    """The cpu suite, which has no parts."""
    if options.only:
        others = ", ".join(name for name in SUITES if name != "cpu")
        raise UserError(f"--only belongs to --suite={others}; cpu has no parts")
    return cpu_suite(options.repeats)


def run_gpu(options: Options) -> dict[str, Any]:
    """The gpu suite, or the parts of it that were asked for."""
    plan = Plan().only(options.only)
    if not options.train_step:
        plan = dataclasses.replace(plan, train=None)
    return gpu_suite(options.repeats, options.save, plan)


def run_tune(options: Options) -> dict[str, Any]:
    """The tune suite, or the parts of it that were asked for."""
    return tune_suite(options.repeats, options.save, options.table, options.only)


def run_decode(options: Options) -> dict[str, Any]:
    """The decode suite, or the patterns of it that were asked for."""
    return decode_suite(options.save, make_plan(options.tokens, options.only))


def run_data(options: Options) -> dict[str, Any]:
    """The data suite, or the parts of it that were asked for."""
    plan = benchmark_data.make_plan(options.only)
    return benchmark_data.data_suite(options.repeats, options.save, plan)


def run_ruler(options: Options) -> dict[str, Any]:
    """The ruler suite, or the patterns of it that were asked for."""
    plan = make_plan(options.tokens, options.only, benchmark_ruler.PLAN)
    return benchmark_ruler.ruler_suite(options.save, plan)


def run_evaluate(options: Options) -> dict[str, Any]:
    """The evaluate suite, or the patterns of it that were asked for."""
    plan = benchmark_evaluate.make_plan(options.tokens, options.only)
    return benchmark_evaluate.evaluate_suite(options.repeats, options.save, plan)


SUITES: dict[str, Callable[[Options], dict[str, Any]]] = {
    "cpu": run_cpu,
    "gpu": run_gpu,
    "tune": run_tune,
    "decode": run_decode,
    "data": run_data,
    "ruler": run_ruler,
    "evaluate": run_evaluate,
}


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("suite", "cpu", f"One of {', '.join(SUITES)}.", flag_values=values)
    flags.DEFINE_integer("repeats", 15, "Timed rounds.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("output", None, "Where the JSON goes.", flag_values=values)
    flags.DEFINE_list("only", [], "Parts of a suite to keep.", flag_values=values)
    flags.DEFINE_bool("train_step", True, "gpu: time a whole train step.", flag_values=values)
    flags.DEFINE_list("tokens", [], "decode, ruler, evaluate: lengths.", flag_values=values)
    flags.DEFINE_string("table", str(TABLE), "tune: the table of tiles.", flag_values=values)


def main(argv: list[str]) -> None:
    """Parses the flags, measures, prints a table and writes the JSON."""
    values = flags.FlagValues()
    define_flags(values)
    cli.refuse_unknown(cli.parse_flags(values, argv), values)
    if values.suite not in SUITES:
        raise UserError(f"--suite: unknown suite {values.suite!r}; {nearest(values.suite, SUITES)}")
    today = datetime.date.today().isoformat()
    path = output_file(values.output or RESULTS / f"{today}_{values.suite}.json")
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
