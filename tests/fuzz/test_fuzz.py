"""Some examples of every kind of file, always the same; `python -m tests.fuzz` tries more."""

import json
import os
import pickle
import time
from pathlib import Path

import pytest

from carve_jax.errors import UserError
from tests.fuzz import bench as benches
from tests.fuzz.bench import Bench, Hang
from tests.fuzz.damage import PICKLE, PLACES, VALUES, Damage, Example, apply
from tests.fuzz.kind import OTHER, REPAIRED, Kind
from tests.fuzz.kinds import KINDS
from tests.fuzz.search import search
from tests.fuzz.table import PROPERTY, table

EXAMPLES = 8
"""Examples of a kind whose share is 1: all kinds together take about 45 s of one core."""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged_files_are_repaired_or_refused(kind, tmp_path, record_property):
    bench = Bench(kind, tmp_path)
    try:
        search(bench, max(4, round(EXAMPLES * kind.share)))
    finally:
        record_property(PROPERTY, (kind.name, dict(bench.counts)))
    assert bench.counts["refused"] + bench.counts[REPAIRED] + bench.counts[OTHER]


def test_names_of_kinds_are_their_own():
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def make(folder, number):
    (folder / "x.json").write_text(json.dumps({"step": number, "name": "a"}), "utf-8")


def read(folder, say):
    try:
        return json.loads((folder / "x.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("x.json cannot be read: restore it") from error


def bench_of(tmp_path, reader):
    return Bench(Kind("x", make, ("*.json",), reader, (), json=True), tmp_path)


def example(how, at=0, what=""):
    return Example(((0, Damage(how, at, what)),))


def test_what_is_refused_and_what_is_right_are_counted(tmp_path):
    bench = bench_of(tmp_path, read)
    assert bench.outcome(example("cut", 3)) == "refused"
    assert bench.outcome(example("link to a whole file")) == "right"
    assert bench.outcome(example("append", 0, "white space")) == "right"
    assert bench.counts == {"refused": 1, "right": 2}


def traceback(folder, say):
    return json.loads((folder / "x.json").read_bytes())


def says_nothing(folder, say):
    raise UserError("no") if b"{" not in (folder / "x.json").read_bytes() else ValueError()


def waits(folder, say):
    with open(folder / "x.json", encoding="utf-8") as file:
        return file.read()


def unpickles(folder, say):
    content = (folder / "x.json").read_bytes()
    return pickle.loads(content) if content == PICKLE else None


def runs(folder, say):
    return os.system("true") if b"system" in (folder / "x.json").read_bytes() else None


def opens_what_it_names(folder, say):
    name = read(folder, say)["name"]
    return (folder / name).exists() and Path(os.path.abspath(folder / name)).read_bytes()


def writes_outside(folder, say):
    if read(folder, say)["step"]:
        (folder.parent / "new").write_text("x")


@pytest.mark.parametrize(
    ("reader", "how", "said"),
    [
        (traceback, ("cut", 3), "JSONDecodeError"),
        (says_nothing, ("empty",), "a sentence of 2 characters"),
        (read, ("value", 1, "1"), "another value without a word"),
        (unpickles, ("only", 0, "pickle"), "unpickled"),
        (runs, ("append", 0, "pickle"), r"Ran.*os\.system"),
        (opens_what_it_names, ("value", 2, "up"), "opened .*secret"),
        (opens_what_it_names, ("value", 2, "absolute"), "opened .*secret"),
        (writes_outside, ("value", 1, "1"), "written outside of the folder: {'new'}"),
    ],
)
def test_the_harness_sees_what_readers_must_not_do(tmp_path, reader, how, said):
    bench = bench_of(tmp_path, reader if reader is not says_nothing else tolerant(reader))
    with pytest.raises(AssertionError, match=f"(?s){said}"):
        bench.outcome(example(*how))


def tolerant(reader):
    """Right on the healthy file, so that a bench can be made of it."""
    return lambda folder, say: reader(folder, say) if not (folder / "x.json").stat().st_size else 1


def test_the_harness_sees_a_reader_that_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(benches, "SECONDS", 0.3)
    bench = bench_of(tmp_path, waits)
    begun = time.monotonic()
    with pytest.raises(Hang):
        bench.outcome(example("pipe"))
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("how", PLACES)
def test_something_else_is_put_in_a_files_place(tmp_path, how):
    path = tmp_path / "in" / "x"
    path.parent.mkdir()
    path.write_text("x")
    apply(Damage(how), path, tmp_path / "none", tmp_path / "outside")
    assert not path.is_file() or path.is_symlink()


@pytest.mark.parametrize("what", VALUES)
def test_a_value_of_a_json_is_replaced(tmp_path, what):
    path = tmp_path / "x"
    path.write_text('{"a": [1, {"b": 2}], "c": 3}')
    apply(Damage("value", 3, what), path, path, tmp_path / "outside")
    raw = VALUES[what].replace("OUTSIDE", str(tmp_path / "outside"))
    assert path.read_text() == f'{{"a": [1, {raw}], "c": 3}}\n'
    path.write_text('{"a": [1, {"b": 2}], "c": 3}')
    apply(Damage("twice", 5, what), path, path, tmp_path / "outside")
    assert path.read_text() == f'{{"a": [1, {{"b": 2}}], "c": 3, "c": {raw}}}\n'


def test_counts_are_a_table():
    lines = table({"a": {"right": 1, "refused": 1200}, "b": {"repaired": 2}}).splitlines()
    assert lines[1].split() == ["a", "1,201", "1", "0", "1,200", "0"]
    assert lines[-1].split() == ["all", "kinds", "1,203", "1", "2", "1,200", "0"]
