"""What tuning, planning and measuring on a GPU read, and what the self-test remembers."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

from carve_jax.files import write_atomically
from experiments.benchmarks.tile_table import read_rows, write_table
from experiments.planning.chips import find_chip
from experiments.planning.rates import find_rates
from experiments.planning.step_anatomy import add_entries
from experiments.rented_gpu.record import Record
from pallas_kernels import tiling, verdicts
from pallas_kernels.verdicts import Check, Verdict
from tests.fuzz.damage import HANGS, kept
from tests.fuzz.kind import OTHER, REPAIRED, Kind, Say, SilentChange, any_value, same

ROW = {"device": "H100", "dtype": "float32", "width": 64, "content": True, "tiles": {"chunk": 32}}


def make_tiles(folder: Path, number: int) -> None:
    rows = [{**ROW, "width": 64 << number}, {**ROW, "device": "", "width": 256}]
    write_atomically(folder / "tiles.json", json.dumps(rows, indent=1))


def read_tiles(folder: Path, say: Say) -> Any:
    """As tune --table does: reads, adds a row, and what it wrote can be chosen from."""
    rows = read_rows(folder / "tiles.json")
    write_table(folder / "tiles.json", [{**ROW, "dtype": "bfloat16"}])
    with mock.patch.object(tiling, "read_table", return_value=json.loads(_text(folder))):
        chosen = tiling.choose("bfloat16", 64, 64, "NVIDIA H100", True)
    return rows, chosen


def _text(folder: Path) -> str:
    return (folder / "tiles.json").read_text("utf-8")


CHECK = Check("gated_delta", "triton", "float32", 64, 64)


def make_verdict(folder: Path, number: int) -> None:
    with mock.patch.object(verdicts, "folder", return_value=folder):
        verdicts.write(Verdict(CHECK, {"output": 1e-6 + number, "query": 2e-6}, 1e-4, 1.5))


def read_verdict(folder: Path, say: Say) -> Any:
    with mock.patch.object(verdicts, "folder", return_value=folder):
        found = verdicts.read(CHECK)
        verdicts.write(Verdict(CHECK, {"output": 1.0}, 1e-4, 1.5))
    return None if found is None else found._asdict()


def judge_verdict(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    if value is not None:
        raise SilentChange("a verdict that no test gave")
    return REPAIRED  # tested anew


def make_rates(folder: Path, number: int) -> None:
    ceilings = {"flop_per_second": 6e14 + number, "bytes_per_second": 3e12}
    record = {"ceilings": ceilings, "devices": ["NVIDIA H100"], "results": []}
    (folder / "gpu.json").write_text(json.dumps(record), "utf-8")


def read_given_rates(folder: Path, say: Say) -> Any:
    rates = find_rates(str(folder / "gpu.json"), find_chip("h100"), 8)
    return [rates[0], rates[1], rates[2]]


def judge_rates(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    found = json.loads((folder / "gpu.json").read_text("utf-8"))["ceilings"]
    if not same(value[:2], [found["flop_per_second"], found["bytes_per_second"]]):
        raise SilentChange("not the file's rates")
    if not all(0 < rate < float("inf") for rate in value[:2]):
        raise SilentChange("rates that no machine has")
    return OTHER


def make_anatomy(folder: Path, number: int) -> None:
    entry = {"parts": {"MLP": {"seconds": 0.1 + number}}, "seconds": 0.4}
    write_atomically(folder / "anatomy.json", json.dumps({"anatomy": {"gdn2_1b3": entry}}))


def read_anatomy(folder: Path, say: Say) -> Any:
    """As plan --anatomy --output does: what the file has stays, beside the new entry."""
    return add_entries(folder / "anatomy.json", {"carve_1b3": {"parts": {}}})


FACTS = {
    "commit": "abc",
    "uncommitted_changes": False,
    "devices": ["GPU"],
    "versions": {"jax": "1"},
}


def make_rented(folder: Path, number: int) -> None:
    record = Record(folder, FACTS)
    record.use_cache(folder / "cache")
    record.keep("decode", {"tokens": 5 + number})
    record.end("decode", "done", 2.0)
    record.end("compile/x", "failed", 2.0, "for want of memory")


def read_rented(folder: Path, say: Say) -> Any:
    """As the command run again."""
    record = Record(folder, FACTS)
    record.use_cache(folder / "cache")
    done, figures = record.done("decode"), record.figures("decode")
    record.keep("other", {"a": 1})
    record.end("other", "done", 1.0)
    return done, figures, record.close(["decode", "other", "compile/x"], {"sum": 1})


def judge_rented(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    """Measured anew, or what the file says."""
    return OTHER if value[0] else REPAIRED


KINDS = (
    Kind(
        "table of tiles",
        make_tiles,
        ("tiles.json",),
        read_tiles,
        ("experiments.benchmarks.tile_table:read_rows",),
        any_value,
        json=True,
        examples=(kept("value", 6, "1.5"), kept("value", 6, "true")),
    ),
    Kind(
        "verdict of the self-test",
        make_verdict,
        ("*.json",),
        read_verdict,
        ("pallas_kernels.verdicts:read",),
        judge_verdict,
        json=True,
        alone=True,  # of the same machine, versions and kernels
        examples=(*HANGS, kept("only", 0, "brace"), kept("value", 20, "deep list")),
    ),
    Kind(
        "rates of a GPU",
        make_rates,
        ("gpu.json",),
        read_given_rates,
        ("experiments.planning.rates:find_rates",),
        judge_rates,
        json=True,
        examples=(*HANGS, kept("value", 2, "NaN"), kept("value", 3, "0")),
    ),
    Kind(
        "anatomy of train steps",
        make_anatomy,
        ("anatomy.json",),
        read_anatomy,
        ("experiments.planning.step_anatomy:add_entries",),
        any_value,
        json=True,
        examples=HANGS,
    ),
    Kind(
        "record of a rented GPU",
        make_rented,
        ("*.json",),
        read_rented,
        ("experiments.rented_gpu.record:Record.__init__",),
        judge_rented,
        json=True,
        examples=(kept("value", 0, "{}"), kept("value", 3, "[]")),
    ),
    Kind(
        "mark of a compilation cache",
        make_rented,
        ("cache/*",),
        read_rented,
        ("experiments.rented_gpu.record:Record.use_cache",),
        judge_rented,
        share=0.3,
        examples=HANGS,
    ),
)
