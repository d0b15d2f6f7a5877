"""The nine-minute command's schedule and record, with tasks that end in every way."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from experiments.rented_gpu import record as record_module
from experiments.rented_gpu.record import Record, code_name
from experiments.rented_gpu.schedule import Schedule, Stage, Task

FACTS = {
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "devices": ["NVIDIA H100 80GB HBM3"],
    "versions": {"jax": "0.11.2"},
}
WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def make_record(folder: Path, **facts: Any) -> Record:
    return Record(folder, {**FACTS, **facts})


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[str]]:
    """Runs stages within so many seconds; gives the lines that were said."""
    work = tmp_path / "work"
    work.mkdir()

    def run_stages(record: Record, *stages: Stage, seconds: float = 60.0, slots: int = 2):
        said: list[str] = []
        schedule = Schedule(
            record,
            time.monotonic() + seconds,
            slots=slots,
            folder=work,
            environment=os.environ,
            log=said.append,
            say=said.append,
            worker=WORKER,
        )
        schedule.run(stages)
        return said

    return run_stages


def task(name: str, call: str = "fine", least: float = 0.0, **rest: Any) -> Task:
    known = {key: rest.pop(key) for key in ("most", "serves", "spare") if key in rest}
    return Task(name, call, {"me": name, **rest}, least=least, **known)


def entry(record: Record, name: str) -> Mapping[str, Any]:
    return json.loads(record.path.read_text())["tasks"][name]


def is_gone(process: int) -> bool:
    """Within some seconds; one that nobody has waited for yet ("Z") is gone."""
    status = Path(f"/proc/{process}/status")
    for _ in range(100):
        if not status.exists() or "State:\tZ" in status.read_text(encoding="utf-8"):
            return True
        time.sleep(0.05)
    return False


def test_every_end_is_recorded_and_costs_itself_alone(tmp_path: Path, run) -> None:
    record = make_record(tmp_path)
    tasks = [
        task("crashes", "crash"),
        task("dies", "die"),
        task("hangs", "hang", most=1.0),
        task("not here", "nothing to do"),
        task("works"),
    ]
    said = run(record, Stage("all", tuple(tasks)))
    assert entry(record, "crashes")["state"] == "failed"
    assert entry(record, "crashes")["why"] == "ValueError: no such tile"
    assert entry(record, "dies")["why"] == "ended by SIGSEGV"
    assert entry(record, "hangs")["state"] == "stopped"
    assert entry(record, "hangs")["figures"] == {"so far": 1}
    assert entry(record, "not here") == {
        "state": "left out", "seconds": pytest.approx(0, abs=30), "why": "not installed (fla)",
    }  # fmt: skip
    assert entry(record, "works")["state"] == "done"
    assert any("said by works" in line for line in said)
    missing = record.close([t.name for t in tasks], {})
    assert set(missing) == {"crashes", "dies", "hangs", "not here"}
    assert json.loads(record.path.read_text())["missing"] == missing


def test_a_second_run_goes_on_with_what_is_missing(tmp_path: Path, run) -> None:
    diary = tmp_path / "diary"
    stage = Stage("all", (task("first", diary=str(diary)), task("second", "hang", most=1.0)))
    run(make_record(tmp_path), stage)
    again = make_record(tmp_path)
    assert again.done("first")
    run(again, Stage("all", (*stage.tasks[:1], task("second"))))
    assert diary.read_text().count("begin first") == 1
    # What the first run had saved of it is there for the second to go on with.
    assert entry(again, "second")["figures"]["earlier"] == {"so far": 1}
    assert "why" not in entry(again, "second")
    assert len(json.loads(again.path.read_text())["runs"]) == 2


@pytest.mark.parametrize(
    "facts",
    [
        {"commit": "fedcba9876543210"},
        {"devices": ["NVIDIA A100-SXM4-80GB"]},
        {"versions": {"jax": "0.12.0"}},
        {"uncommitted_changes": True},
    ],
    ids=["commit", "card", "JAX", "changes"],
)
def test_another_commit_or_card_starts_anew(tmp_path: Path, run, facts: dict) -> None:
    first = make_record(tmp_path)
    run(first, Stage("all", (task("one"),)))
    other = make_record(tmp_path, **facts)
    assert not other.done("one")
    assert other.path != first.path
    assert make_record(tmp_path).done("one")


def test_changed_sources_are_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "pallas_kernels" / "kernel.py"
    source.parent.mkdir()
    source.write_text("a = 1")
    monkeypatch.setattr(record_module, "ROOT", tmp_path)
    before = code_name("0123456789abcdef", True)
    source.write_text("a = 2")
    after = code_name("0123456789abcdef", True)
    assert before.startswith("0123456789ab-")
    assert before != after
    assert code_name("0123456789abcdef", False) == "0123456789ab"
    assert code_name(None, False).startswith("no-commit-")


def test_the_deadline_ends_everything_and_says_what_is_left_out(tmp_path: Path, run) -> None:
    record = make_record(tmp_path)
    child = tmp_path / "child"
    start = time.monotonic()
    run(
        record,
        Stage("one", (task("long", "hang", child=str(child)),)),
        Stage("two", (task("never", least=10.0), task("not either", least=5.0))),
        seconds=2.0,
    )
    assert time.monotonic() - start < 12
    assert entry(record, "long")["state"] == "stopped"
    assert entry(record, "never")["why"] == "0 s were left, and it needs 10"
    assert entry(record, "not either")["state"] == "left out"
    assert is_gone(int(child.read_text()))  # what it had started, too


def test_a_stage_has_its_own_time(tmp_path: Path, run) -> None:
    record = make_record(tmp_path)
    run(
        record,
        Stage("one", (task("long", "hang"), task("left", least=3.0)), most=1.5),
        Stage("two", (task("next"),)),
    )
    assert entry(record, "long")["state"] == "stopped"
    assert "it needs 3" in entry(record, "left")["why"]
    assert entry(record, "next")["state"] == "done"


def test_results_are_saved_as_they_come(tmp_path: Path, run) -> None:
    record = make_record(tmp_path)
    seen: list[dict] = []
    keep = record.keep

    def spy(name: str, figures: Any) -> None:
        keep(name, figures)
        seen.append(entry(record, name))

    record.keep = spy  # type: ignore[method-assign]
    run(record, Stage("all", (task("slow", "hang", most=1.5),)))
    # On disk while the task ran: a run that is itself killed then leaves them.
    assert seen[0] == {
        "state": "stopped", "why": "the run ended under it", "figures": {"so far": 1},
    }  # fmt: skip


def lines(diary: Path) -> list[str]:
    return diary.read_text(encoding="utf-8").splitlines()


def test_stages_are_in_order_and_timings_alone(tmp_path: Path, run) -> None:
    diary = tmp_path / "diary"
    slow = {"seconds": 0.7, "diary": str(diary)}
    run(
        make_record(tmp_path),
        Stage("compile", (task("a", **slow), task("b", **slow)), side_by_side=True),
        Stage("time", (task("c", **slow), task("d", **slow))),
    )
    assert set(lines(diary)[:2]) == {"begin a", "begin b"}
    assert lines(diary)[4:] == ["begin c", "end c", "begin d", "end d"]


def test_no_more_side_by_side_than_there_is_room_for(tmp_path: Path, run) -> None:
    diary = tmp_path / "diary"
    tasks = tuple(task(name, diary=str(diary), seconds=0.3) for name in "abc")
    run(make_record(tmp_path), Stage("compile", tasks, side_by_side=True), slots=1)
    assert lines(diary) == [f"{what} {name}" for name in "abc" for what in ("begin", "end")]


def test_spare_tasks_end_with_the_others(tmp_path: Path, run) -> None:
    record = make_record(tmp_path)
    tasks = (task("needed", seconds=1.0), task("spare", "hang", spare=True))
    late = task("late", spare=True)
    run(record, Stage("compile", (*tasks, late), side_by_side=True))
    assert entry(record, "needed")["state"] == "done"
    assert entry(record, "spare")["state"] == "stopped"
    assert entry(record, "late")["why"] == "there were no idle cores for it"
    # Where nothing else is left to do, they are what there is to do.
    run(record, Stage("compile", (*tasks[:1], late), side_by_side=True))
    assert entry(record, "late")["state"] == "done"


def test_what_serves_only_what_is_done_is_not_needed(tmp_path: Path, run) -> None:
    record = make_record(tmp_path)
    run(record, Stage("time", (task("time/a"),)))
    run(
        record,
        Stage(
            "compile",
            (
                task("compile/a", serves=("time/a",)),
                task("compile/b", serves=("time/a", "time/b")),
            ),
        ),
    )
    assert "compile/a" not in record.tasks
    assert record.done("compile/b")


def test_what_was_compiled_into_another_cache_is_not_done(tmp_path: Path, run) -> None:
    record = make_record(tmp_path)
    record.use_cache(tmp_path / "cache")
    run(record, Stage("all", (task("compile/a"), task("time/a"))))
    again = make_record(tmp_path)
    again.use_cache(tmp_path / "cache")
    assert again.done("compile/a")
    again.use_cache(tmp_path / "another machine's")
    assert not again.done("compile/a")
    assert again.done("time/a")


def test_an_interrupt_leaves_no_process(tmp_path: Path, run) -> None:
    record = make_record(tmp_path)
    child = tmp_path / "child"

    def interrupt(name: str, figures: Any) -> None:
        while not child.exists() or not child.read_text():
            time.sleep(0.05)
        raise KeyboardInterrupt

    record.keep = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(record, Stage("all", (task("long", "hang", child=str(child)),)))
    assert is_gone(int(child.read_text()))
