"""The nine-minute command and its summary, with results as the tasks leave them."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from experiments import cli
from experiments.measuring.rule_calls import LAYER
from experiments.rented_gpu import __main__ as command
from experiments.rented_gpu import stages, step_table, summary
from experiments.rented_gpu.record import Record
from experiments.rented_gpu.schedule import Schedule, Stage
from tests.experiments.rented_gpu.machine import FACTS, H100


def fill(record: Record) -> None:
    """Results as the tasks leave them."""
    both = "forward and backward"
    timed = {
        f"time/ours {LAYER.label}": {
            "gdn2 pallas, forward": 2.0, "carve pallas, forward": 3.0, f"gdn2 pallas, {both}": 4.0,
        },
        "time/jla gdn2": {"jla gdn2, forward": 4.0},
        "time/fla gdn2, forward": {"fla gdn2, forward": 5.0},
    }  # fmt: skip
    for name, seconds in timed.items():
        figures = {"median_seconds": seconds, "peak_bytes": dict.fromkeys(seconds, 7)}
        record.keep(name, {**figures, "left_out": {}})
        record.end(name, "done", 1.0)
    record.end("time/jla kda", "failed", 1.0, "ValueError: no")
    step = {
        "median_seconds": 1.0, "peak_bytes": 10, "rows": 4, "tokens_per_second": 4.0,
        "parameters": 7, "model_flops_per_token": 42, "mfu": 0.25, "finite": True, "left_out": {},
        "kernels": {},
    }  # fmt: skip
    for name in ("gdn2", "carve", "jla gdn2"):
        record.keep(f"train/{name}", {**step, "mfu": 0.5 if name == "jla gdn2" else 0.25})
        record.end(f"train/{name}", "done", 1.0)
    record.end("train/fla gdn2", "left out", 1.0, "not installed (fla)")
    kernels = {"score": {"seconds": 0.003, "launches": 1.0}}
    record.keep("profile/ours", {"gdn2 pallas, forward": kernels})


def test_the_summary_sets_processes_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(tmp_path, FACTS)
    fill(record)
    figures = summary.collect(record)
    part = figures["shapes"][LAYER.label]
    assert part["ratios"]["jla gdn2 / gdn2 pallas, forward"] == 2.0
    assert part["ratios"]["fla gdn2 / gdn2 pallas, forward"] == 2.5
    assert part["left_out"]["jla kda"] == "ValueError: no"
    assert part["roofline_share"] == {}  # the machine's rates were not measured
    assert figures["train_step"]["ratio"] == 1.0
    met = {target["what"]: target["met"] for target in figures["targets"]}
    assert met["fla gdn2 / gdn2, forward"] is True
    assert met["carve / gdn2, forward"] is False
    rates = {"flop_per_second": 1e15, "bytes_per_second": 3e12}
    record.keep("time/decode", {"ceilings": rates})
    assert summary.collect(record)["shapes"][LAYER.label]["roofline_share"]
    summary.show(record, figures, {"tiles/a": "left out: 3 s were left, and it needs 20"})
    printed = capsys.readouterr().out
    assert "score" in printed
    assert "missing, for another run: 1" in printed


def test_the_summary_has_one_table_of_all_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(tmp_path, FACTS)
    empty = summary.collect(record)
    summary.show(record, empty, {})
    assert "ours and peers" not in capsys.readouterr().out  # nothing was measured
    fill(record)
    figures = summary.collect(record)
    table = figures["step_table"]
    assert "what is computed again is not counted" in table["definition"]
    rows = {(row["model"], row["of"], row.get("remat")): row for row in table["steps"]}
    assert len(rows) == len(step_table.STEPS) + len(step_table.ABSENT)
    ours, theirs = rows["gdn2", "ours", "full"], rows["gdn2", "jax-linear-attention", "full"]
    assert (ours["mfu"], theirs["mfu"]) == (0.25, 0.5)
    assert "kernels" not in ours
    missing = {key: row["missing"] for key, row in rows.items() if "missing" in row}
    assert missing["gdn2", "flash-linear-attention", "full"] == "left out: not installed (fla)"
    assert missing["carve", "jax-linear-attention", None] == "it has no CARVE"
    assert missing["kda", "ours", "kept"] == "not begun: no time yet, or not asked for"
    assert len(missing) == len(rows) - 3  # every row has figures or says why not
    summary.show(record, figures, {})
    printed = capsys.readouterr().out
    assert "1.3B train steps: ours and peers" in printed
    assert [line.split()[-1] for line in printed.splitlines() if " full " in line] == [
        "25.0%", "50.0%", "25.0%",
    ]  # fmt: skip
    assert "gdn2 of flash-linear-attention, full: left out: not installed (fla)" in printed
    assert "carve of jax-linear-attention: it has no CARVE" in printed
    assert table["definition"] in printed


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A GPU machine whose tasks end at once; the names of what ran."""
    ran: list[str] = []
    monkeypatch.setattr(command, "find_machine", lambda *_: dict(FACTS))

    def run(self: Schedule, given: tuple[Stage, ...]) -> None:
        ran.extend(stage.name for stage in given)
        fill(self._record)

    monkeypatch.setattr(Schedule, "run", run)
    handler = command.signal.getsignal(command.signal.SIGTERM)
    yield ran
    command.signal.signal(command.signal.SIGTERM, handler)


def test_the_command_writes_one_record(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rented_gpu", f"--output={tmp_path / 'out'}", "--minutes=9"]
    assert cli.call(command.main, arguments) == 0
    assert pretended == list(stages.STAGES)
    (path,) = (tmp_path / "out").glob("*.json")
    assert path.name == "0123456789ab_NVIDIA-H100-80GB-HBM3_jax-0.11.2.json"
    record = json.loads(path.read_text())
    assert record["summary"]["shapes"][LAYER.label]["median_seconds"]["gdn2 pallas, forward"] == 2.0
    assert record["missing"]["time/decode"] == "not begun: no time yet, or not asked for"
    assert "time/jla gdn2" not in record["missing"]
    assert record["runs"][0]["command"] == "python -m experiments.rented_gpu --minutes=9"
    assert f"written to {path}" in capsys.readouterr().out


def test_wrong_kernels_are_said_first_and_in_the_exit_code(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def run(self: Schedule, given: tuple[Stage, ...]) -> None:
        said = ["a table", "the kernels are off by 0.3"]
        self._record.keep("correctness/self-test", {"passed": False, "said": said})
        self._record.end("correctness/self-test", "done", 1.0)

    monkeypatch.setattr(Schedule, "run", run)
    arguments = ["rented_gpu", f"--output={tmp_path}", "--only=correctness"]
    assert cli.call(command.main, arguments) == 1
    printed = capsys.readouterr()
    assert "WRONG self-test: the kernels are off by 0.3" in printed.out
    assert printed.err.startswith(f"error: the kernels are wrong on this {H100}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only=timing"], "--only: unknown stage 'timing'"),
        (["--minute=9"], "unknown flag --minute"),
        (["--minutes=0"], "minutes"),
        (["--output=/proc/nowhere"], "--output=/proc/nowhere cannot be made"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], said: str, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(command.main, ["rented_gpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not pretended


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU here")
def test_without_a_gpu_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CARVE_PALLAS", raising=False)
    handler = command.signal.getsignal(command.signal.SIGTERM)
    try:
        assert cli.call(command.main, ["rented_gpu", f"--output={tmp_path}"]) == 2
    finally:
        command.signal.signal(command.signal.SIGTERM, handler)
    error = capsys.readouterr().err
    assert error.startswith("error: rented_gpu needs an NVIDIA GPU, and JAX computes on 'cpu'")
    assert error.count("\n") == 1


def test_room_is_cores_as_far_as_memory_goes() -> None:
    assert command.slots(16, 128e9, 80e9) == 16
    assert command.slots(16, 16e9, 80e9) == 4
    assert command.slots(16, 128e9, 8e9) == 4
    assert command.slots(16, 1e9, None) == 1
