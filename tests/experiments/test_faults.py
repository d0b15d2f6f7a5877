"""A few kills, and that the comparison after them can fail. Thirty: see experiments/faults.py."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments import cli, faults
from experiments.fault_injection.outcome import differences, outcome


@pytest.mark.slow  # tests/training/test_loop.py stops, kills and resumes a run within a process
def test_killed_runs_end_as_the_one_left_alone(tmp_path, capsys):
    changes = ["--config.steps=10", "--config.guard.loss_factor=0.5"]
    argv = [
        "faults", "--kills=2", "--seed=1", f"--workdir={tmp_path / 'runs'}",
        f"--output={tmp_path / 'record.json'}", *changes,
    ]  # fmt: skip
    assert cli.call(faults.main, argv) == 0, capsys.readouterr().out
    record = json.loads((tmp_path / "record.json").read_text())
    assert len(record["kills"]) == 2
    assert record["mid_save"] >= 1
    assert record["differences"] == [[]] * (record["runs"] + 1)
    assert record["runs"] >= 1
    # What was compared is a whole run.
    overrides = [f"--config.{name}={value}" for name, value in faults.TINY.items()]
    config = cli.load_config(faults.CONFIG, [*overrides, *changes])
    expected = outcome(config, tmp_path / "runs" / "alone")
    assert [line["step"] for line in expected[2]] == list(range(1, 11))
    assert any("guard" in line for line in expected[2])
    # And it can fail: another number, another position, another line.
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "runs" / "again", damaged)
    lines = (damaged / "metrics.jsonl").read_text().splitlines()
    (damaged / "metrics.jsonl").write_text("\n".join([lines[0], lines[0], *lines[2:-1]]) + "\n")
    state, position, figures = outcome(config, damaged)
    flipped = jax.tree.map(np.array, state)
    flipped.params["head"]["kernel"].view(np.uint32)[0, 0] ^= 1
    found = differences((flipped, {"other": position}, figures), expected)
    assert found == [
        "array .params['head']['kernel']",
        "the data position",
        "the figures of step 2",
        "9 lines of figures in place of 10",
    ]


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_not_compared(tmp_path, capsys):
    argv = ["faults", "--kills=1", f"--workdir={tmp_path / 'new'}", "--config.model.num_heads=0"]
    assert cli.call(faults.main, argv) == 2
    assert "error: training ended with 2: error: " in capsys.readouterr().err
    assert cli.call(faults.main, argv) == 2
    assert "is not empty: give a new one" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--kills=0", "--kils=3"])
def test_bad_flags(flag):
    assert cli.call(faults.main, ["faults", flag]) == 2
