"""Runs of a sweep come to their end, once each, whatever happens to them and to the sweep."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.sweeps.store import Store
from tests.experiments.sweeps.harness import STEPS, make_runner, make_runs

ROOT = Path(__file__).parents[3]


def steps_of(store, run):
    lines = (store.directory(run) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def starts_of(store, run):
    path = store.directory(run) / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def start(directory, pause=0.1):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.experiments.sweeps.harness", str(directory), str(pause)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_crash_is_tried_once_more_and_the_others_go_on(tmp_path):
    said = []
    endings = {"task.v.s0": (1,), "task.v.s1": (1, 1), "task.v.s2": (3,), "task.v.s3": (2,)}
    runs, store = make_runs(5), Store(tmp_path)
    # Long enough to be looked at while they run, as their memory is.
    make_runner(tmp_path, pause=0.1, endings=endings, say=said.append).run_all(runs)
    found = [store.status(run) for run in runs]
    states = [(s.state, s.attempts, s.exit_code, s.message) for s in found]
    assert states == [
        ("failed", 2, 1, "error: something broke"),
        ("done", 2, 0, ""),
        ("diverged", 1, 3, "error: something broke"),
        ("failed", 1, 2, "error: something broke"),
        ("done", 1, 0, ""),
    ]
    assert {s.jobs for s in found} == {2}
    assert "task.v.s0 crashed (error: something broke): trying it once more" in said
    log = store.path(runs[0], "log")
    assert f"task.v.s0 failed: error: something broke; see {log}" in said
    assert any(line.endswith("eval_accuracy 0.2500, eval_loss 1.5000") for line in said)
    assert log.read_text().startswith(f"\n$ {sys.executable} ")
    assert all(s.seconds > 0 for s in found)
    assert {s.commit for s in found} == {"abc"}
    if sys.platform == "linux":  # a Python that imports little; this process holds far more
        assert all(1e6 < s.peak_rss_bytes < 100e6 for s in found)
    assert steps_of(store, runs[1]) == list(range(1, STEPS + 1))

    # Started again: what failed gets another chance, what diverged and what is done does not.
    make_runner(tmp_path, say=said.append).run_all(runs)
    assert [store.status(run).state for run in runs] == [
        "done", "done", "diverged", "done", "done",
    ]  # fmt: skip
    assert [starts_of(store, run) for run in runs] == [3, 2, 1, 2, 1]


def test_a_directory_of_another_config_is_told_and_the_others_go_on(tmp_path):
    runs, said = make_runs(2), []
    make_runner(tmp_path).run_all(runs[:1])
    (tmp_path / "runs" / "task.v.s0.status.json").unlink()
    (tmp_path / "runs" / "task.v.s0" / "config.json").write_text('{"steps": 7}')
    make_runner(tmp_path, say=said.append).run_all(runs)
    status = Store(tmp_path).status(runs[0])
    assert status.state == "failed"
    assert "belongs to a run of another config: steps is 7 there and 6 here" in status.message
    assert Store(tmp_path).is_done(runs[1])


def test_an_end_without_the_last_step_is_no_success(tmp_path):
    (run,), store = make_runs(1), Store(tmp_path)
    make_runner(tmp_path).run_all([run])
    lines = (store.directory(run) / "metrics.jsonl").read_text().splitlines(keepends=True)
    (store.directory(run) / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert not store.is_done(run)
    make_runner(tmp_path).run_all([run])
    assert store.is_done(run)
    assert starts_of(store, run) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="processes learn of a killed parent on Linux")
@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_sweep_loses_no_run_and_repeats_none(tmp_path, kills):
    store, runs, rng = Store(tmp_path), make_runs(6), random.Random(0)
    for kill in range(kills):
        process = start(tmp_path)
        begun = sum(starts_of(store, run) for run in runs)
        wait_for(lambda b=begun: sum(starts_of(store, run) for run in runs) > b)
        time.sleep(rng.uniform(0, 1.2))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        over = {run.id: starts_of(store, run) for run in runs if store.is_done(run)}
        assert len(over) < len(runs), f"kill {kill} came too late"
    process = start(tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    for run in runs:
        assert store.is_done(run)
        assert steps_of(store, run) == list(range(1, STEPS + 1))
        assert not (store.directory(run) / "clash").exists(), "two processes of one run"
        assert starts_of(store, run) == over.get(run.id, starts_of(store, run))


@pytest.mark.slow  # always: that a killed one goes on
def test_a_stop_is_passed_on_and_gone_on_from(tmp_path):
    store, runs = Store(tmp_path), make_runs(6)
    process = start(tmp_path, pause=0.3)
    wait_for(lambda: any((store.directory(run) / "metrics.jsonl").exists() for run in runs))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted: 0 of 6 runs are done and those going on have saved; run" in err
    assert {store.status(run).state for run in runs} == {"waiting"}
    make_runner(tmp_path).run_all(runs)
    assert all(steps_of(store, run) == list(range(1, STEPS + 1)) for run in runs)


def test_a_run_of_another_process_is_waited_for(tmp_path):
    (run,), store, said = make_runs(1), Store(tmp_path), []
    make_runner(tmp_path).run_all([])  # makes the directory
    store.directory(run).mkdir()
    with store.lock(run) as lock:
        other = subprocess.Popen(["sleep", "0.5"], pass_fds=[lock.fileno()])
    assert store.lock(run) is None
    begun = time.monotonic()
    make_runner(tmp_path, say=said.append).run_all([run])
    assert time.monotonic() - begun > 0.3
    assert said[0] == "task.v.s0 is being run by another process: waiting for its end"
    assert store.is_done(run)
    other.wait()
