"""Compiles the shipped kernels for GPUs that need not be present, and reports what each one takes.

    python -m pallas_kernels.aot                            # counts what the kernels execute
    python -m pallas_kernels.aot --programs=carve --categories
    python -m pallas_kernels.aot --compare                  # beside pip's Triton
    python -m pallas_kernels.aot --check                    # exits 1 when a kernel got worse
    python -m pallas_kernels.aot --record                   # accepts today's figures
    python -m pallas_kernels.aot --compiler=triton --arch=sm_90,sm_80 --check

`--compiler=xla` compiles with XLA, which will run them, at the size of the papers' models (B8 T4096
H16 K=V=128, and sizes that depart from it in one thing): instructions that a warp executes,
occupancy, predicted time. Needs the extra `aot`; its limits are `compiling/budgets.json`.
`--compiler=triton` compiles every tile of the table with pip's Triton, quickly and everywhere: that
everything lowers, fits its chip and takes no more stack or spills than `compiling/limits.json`
says. It says little of the code that XLA makes. The default is xla where it is installed. Neither
needs a GPU.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from pallas_kernels.compiling import budgets, catalogue, counts, report, xla
from pallas_kernels.compiling.chips import CHIPS

LIMITS = Path(__file__).parent / "compiling" / "limits.json"
BUDGETS = budgets.RECORD
USER_ERROR = 2
COMPILERS = ("xla", "triton")


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
      argv: the arguments, without the program's name.

    Returns:
      0; 1 when `--check` or `--record` met a kernel that fails; 2 for a mistake in the arguments.
    """
    flags = _parse(argv)
    if flags.calibration:
        print(counts.calibration_table())
        return 0
    compiler = flags.compiler or ("triton" if xla.unsupported_reason() else "xla")
    archs = list(dict.fromkeys(flags.arch.split(",")))
    if compiler not in COMPILERS:
        return _fail(f"--compiler={compiler} is not known; choose from {', '.join(COMPILERS)}")
    if unknown := [arch for arch in archs if arch not in CHIPS]:
        return _fail(f"--arch={unknown[0]} is not known; choose from {', '.join(CHIPS)}")
    if (compiler == "triton" or flags.compare) and importlib.util.find_spec("triton") is None:
        return _fail("the triton package is not installed: run pip install -e '.[dev]'")
    if compiler == "triton":
        return _with_triton(archs, flags)
    if reason := xla.unsupported_reason():
        return _fail(reason)
    if len(archs) > 1 or ((flags.check or flags.record) and archs != ["sm_90"]):
        return _fail(f"--arch={flags.arch}: instructions are recorded for sm_90, counted for one")
    return _with_xla(archs[0], flags)


def _with_triton(archs: Sequence[str], flags: argparse.Namespace) -> int:
    rows = []
    for arch in archs:
        programs = _chosen(catalogue.programs, arch, flags)
        if isinstance(programs, str):
            return _fail(programs)
        print(f"{arch}: {len(programs)} programs", file=sys.stderr, flush=True)
        rows += report.report(programs, arch, flags.workers)
    print(report.table(rows))
    if error := _write(flags.output, report.as_json(rows)):
        return _fail(error)
    return _judge(rows, flags)


def _with_xla(arch: str, flags: argparse.Namespace) -> int:
    listed = catalogue.countable if flags.programs else catalogue.counted
    programs = _chosen(listed, arch, flags)
    if isinstance(programs, str):
        return _fail(programs)
    found = []
    for i, program in enumerate(programs, 1):
        print(f"{arch}: {i}/{len(programs)} {program.label}", file=sys.stderr, flush=True)
        found.append(counts.count(program, arch))
    print(counts.table(found))
    if flags.categories:
        print(counts.categories(found))
    if flags.steps:
        print(counts.steps(found))
    if flags.compare:
        print(counts.compare(found, arch, flags.workers))
    record = budgets.record(found, arch)
    if error := _write(flags.output, record):
        return _fail(error)
    before = json.loads(BUDGETS.read_text(encoding="utf-8")) if BUDGETS.exists() else {}
    failures = [f"{c.program}: {c.error}" for c in found if c.error]
    over = budgets.over_budget(record["kernels"])
    if flags.check:
        failures += budgets.worse(record, before, whole=not flags.programs) + over
    elif flags.record and not failures:
        merged = budgets.merge(record, before) if flags.programs else record
        BUDGETS.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
    for failure in failures or over:
        print(f"{'error' if failures else 'over budget'}: {failure}", file=sys.stderr)
    return 1 if failures and (flags.check or flags.record) else 0


def _chosen(listed: Any, arch: str, flags: argparse.Namespace) -> Any:
    """The programs asked for; a sentence if there are none."""
    shipped = listed(CHIPS[arch].device_kind, CHIPS[arch].capability)
    wanted = flags.programs.split(",")
    programs = [p for p in shipped if any(part in p.label for part in wanted)]
    if programs:
        return programs
    known = ", ".join(sorted({p.label for p in shipped}))
    return f"no program's name contains {flags.programs!r}; there are: {known}"


def _write(path: str | None, content: Any) -> str | None:
    """Writes JSON if asked; a sentence if that fails."""
    if path:
        try:
            Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            return f"--output={path} cannot be written: {error.strerror}"
    return None


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--compiler", help="xla (the default where it is installed) or triton")
    parser.add_argument("--arch", default="sm_90", help=f"comma-separated, from {', '.join(CHIPS)}")
    parser.add_argument(
        "--programs",
        default="",
        help="only those whose name/tile/dtype contains one of these, separated by commas",
    )
    parser.add_argument("--categories", action="store_true", help="instructions by kind (xla)")
    parser.add_argument("--steps", action="store_true", help="what XLA does between kernels (xla)")
    parser.add_argument("--compare", action="store_true", help="beside pip's Triton (xla)")
    parser.add_argument("--calibration", action="store_true", help="measured kernels, predicted")
    parser.add_argument("--output", help="write the report to this file, as JSON")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="compiler processes")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="exit 1 if a kernel got worse")
    choice.add_argument("--record", action="store_true", help="write the limits for --check")
    return parser.parse_args(argv)


def _judge(rows: Sequence[report.Row], flags: argparse.Namespace) -> int:
    """Says what fails, does what `--check` or `--record` asks, and returns the exit code."""
    recorded = json.loads(LIMITS.read_text(encoding="utf-8")) if LIMITS.exists() else {}
    failures = report.hardware_failures(rows)
    if flags.check:
        failures += report.limit_failures(rows, recorded)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        return 1 if flags.check or flags.record else 0
    if flags.record:
        limits = report.record(rows, recorded, keep_others=bool(flags.programs))
        LIMITS.write_text(json.dumps(limits, indent=1) + "\n", encoding="utf-8")
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # kernels are lowered for a chip, not run on one
    sys.exit(main(sys.argv[1:]))
