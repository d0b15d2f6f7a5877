"""Whole runs: resumed to the bit, stopped cleanly, nothing lost and nothing told twice."""

import functools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from carve_jax.errors import UserError
from carve_jax.training import loop
from carve_jax.training.processes.stopping import Interrupted, TrainingDiverged
from carve_jax.training.reports import spelled, whole_run
from carve_jax.training.reports.metrics import CLOCK, read_metrics
from carve_jax.training.run import build, load_trained
from carve_jax.training.workdir import load_tokenizer
from tests.training.helpers import ANY_LAYER, figures, text_data, tiny_config, train


def before_step(monkeypatch, number, act):
    """From now on, runs call `act(batch)` before their step `number`, counted a process start."""

    def watched(config):
        run, calls = build(config), []

        def train_step(state, batch):
            calls.append(batch)
            if len(calls) == number:
                batch = act(batch) or batch
            return run.train_step(state, batch)

        return run._replace(train_step=train_step)

    monkeypatch.setattr(loop, "build", watched)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A run of six steps that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("golden") / "run"
    state, lines = train(tiny_config(), workdir)
    return workdir, state, lines


def assert_golden(golden, workdir, state):
    jax.tree.map(np.testing.assert_array_equal, state, golden[1])
    assert figures(workdir) == figures(golden[0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_and_resumed_equals_undisturbed_to_the_bit(
    golden, tmp_path, monkeypatch, number, code
):
    with monkeypatch.context() as patch:
        before_step(patch, 3, lambda batch: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted) as stopped:
            train(tiny_config(), tmp_path)
    assert stopped.value.exit_code == code
    assert f"the last good checkpoint is step 3 in {tmp_path}" in str(stopped.value)
    assert "run the same command again" in str(stopped.value)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    assert signal.getsignal(number) is not None
    state, lines = train(tiny_config(), tmp_path)
    assert lines[0].startswith("training from step 3 to 6")
    assert_golden(golden, tmp_path, state)


def test_killed_after_its_last_checkpoint(golden, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(batch):
        raise Killed

    config = tiny_config(checkpoint_every=2)
    with monkeypatch.context() as patch:
        before_step(patch, 6, kill)
        with pytest.raises(Killed):
            train(config, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a line cut off
    state, lines = train(config, tmp_path)
    assert lines[0].startswith("training from step 4 to 6")
    assert_golden(golden, tmp_path, state)


def test_a_damaged_newest_checkpoint_costs_steps_but_no_bits(golden, tmp_path):
    config = tiny_config(checkpoint_every=3)
    train(config, tmp_path)
    state_files = (tmp_path / "checkpoints" / "6" / "state").rglob("*")
    largest = max((p for p in state_files if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    largest.write_bytes(content)
    state, lines = train(config, tmp_path)
    assert lines[0].startswith("checkpoint of step 6 cannot be used: ")
    assert lines[1] == "the checkpoint of step 3 is used instead"
    assert_golden(golden, tmp_path, state)


def test_a_finished_run_is_left_as_it_is(golden, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(golden[0], workdir)
    state, lines = train(tiny_config(), workdir)
    assert lines[0].startswith("training from step 6 to 6")
    assert_golden(golden, workdir, state)


def test_metrics_of_a_run(golden):
    lines = read_metrics(golden[0])
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert {"loss", "grad_norm", "param_norm", "learning_rate", "tokens"} <= line.keys()
        assert ("eval_loss" in line) == ("eval_accuracy" in line) == (line["step"] in (3, 6))
        assert "bits_per_byte" not in line  # associative recall is not text
    assert [line.keys() & CLOCK for line in lines] == [set()] + [CLOCK] * 5
    for line in lines[1:]:
        assert 0 <= line["data_wait_seconds"] < line["step_seconds"]
        assert line["mfu"] is None  # a CPU is not in the table of peaks
    assert lines[-1]["tokens"] == 6 * lines[0]["tokens"]
    assert list((golden[0] / "tensorboard").glob("events.*"))


def test_a_line_has_the_mean_loss_of_the_steps_since_the_last_line(golden, tmp_path, monkeypatch):
    def kill(batch):
        raise KeyError

    config = tiny_config(log_every=2, eval_every=100, checkpoint_every=5)
    train(config, tmp_path / "whole")
    steps = [line["loss"] for line in read_metrics(golden[0])]
    losses = {line["step"]: line["loss"] for line in read_metrics(tmp_path / "whole")}
    expected = {2: np.mean(steps[:2]), 4: np.mean(steps[2:4]), 6: np.mean(steps[4:])}
    assert losses == pytest.approx(expected, rel=1e-5)
    with monkeypatch.context() as patch:
        before_step(patch, 6, kill)
        with pytest.raises(KeyError):
            train(config, tmp_path / "cut")
    train(config, tmp_path / "cut")
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")


def test_the_first_line_says_what_is_trained_on_what(golden):
    workdir, state, lines = golden
    total = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert lines[0] == (
        f"training from step 0 to 6: {total:,} parameters on 1 × cpu, the rule's implementation "
        f"is recurrent; results go to {workdir}"
    )
    assert not any("experiments.generate" in line for line in lines)  # there is no text


def test_the_bar_says_that_the_first_step_compiles(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(loop.tqdm, "set_postfix_str", lambda bar, text: said.append(text))
    train(tiny_config(), tmp_path)
    assert said == ["compiling the first step"]
    train(tiny_config(), tmp_path)  # it is finished
    assert len(said) == 1


def test_provenance_of_a_run(golden, tmp_path):
    facts = json.loads((golden[0] / "provenance.json").read_text())
    assert facts["implementation"] in ("recurrent", "chunked")
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["devices"] == [d.device_kind for d in jax.devices()]
    assert facts["parameters"]["total"] > facts["parameters"]["mixer"] > 0
    assert facts["data"]["source"] == "mqar"
    assert facts["earlier"] == []
    workdir = tmp_path / "copy"
    shutil.copytree(golden[0], workdir)
    train(tiny_config(), workdir)
    again = json.loads((workdir / "provenance.json").read_text())
    assert again["start_step"] == 6
    assert [start["start_step"] for start in again["earlier"]] == [0]


@pytest.mark.parametrize("name", ["recurrent", "chunked"])
def test_a_named_implementation_is_the_one_recorded(name):
    run = build(tiny_config(model__implementation=name))
    facts = whole_run.describe(run, run.state_shapes, start=0)
    assert facts["implementation"] == name


def test_another_config_is_refused(golden):
    with pytest.raises(UserError, match=r"model.layers is 1 there and 2 here; give another --work"):
        train(tiny_config(model__layers=2), golden[0])


def test_too_small_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match="vocab_size is 50, but the data has 64 different tokens"):
        train(tiny_config(model__vocab_size=50), tmp_path)


def test_nan_stops_the_run_and_names_the_way_back(tmp_path, monkeypatch):
    def poison(batch):
        return {**batch, "loss_mask": batch["loss_mask"] * np.float32(np.nan)}

    before_step(monkeypatch, 4, poison)
    with pytest.raises(TrainingDiverged) as stopped:
        train(tiny_config(checkpoint_every=2), tmp_path)
    message = str(stopped.value)
    places = "the loss and the gradients of all parameter groups"
    assert message.startswith(f"training diverged at step 4: NaN or infinity in {places}; ")
    assert f"the last good checkpoint is step 2 in {tmp_path / 'checkpoints' / '2'}" in message
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_one_bad_group_is_named(tmp_path, monkeypatch):
    def build_with_bad_head(config):
        run = build(config)

        def train_step(state, batch):
            state, metrics = run.train_step(state, batch)
            return state, metrics.replace(finite={**metrics.finite, "head": np.False_})

        return run._replace(train_step=train_step)

    monkeypatch.setattr(loop, "build", build_with_bad_head)
    with pytest.raises(TrainingDiverged) as stopped:
        train(tiny_config(), tmp_path)
    assert stopped.value.places == ["head"]
    assert "no checkpoint had been finished in" in str(stopped.value)


class TextRun(NamedTuple):
    workdir: Path
    config: ConfigDict
    state: Any
    lines: list[str]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """Two steps on token files."""
    directory = tmp_path_factory.mktemp("text")
    changes = {"steps": 2, "sample_tokens": 8, "sample_prompt": "the rule"}
    config = tiny_config(**ANY_LAYER, model__vocab_size=257, **changes)
    config.data = text_data(directory / "data")
    return TextRun(directory / "run", config, *train(config, directory / "run"))


def test_text_gives_bits_a_picture_and_a_sample(text_run):
    workdir, _, state, lines = text_run
    last = read_metrics(workdir)[-1]
    assert last["bits_per_byte"] == pytest.approx(last["loss"] / np.log(2), rel=0.1)
    assert last["eval_bits_per_byte"] > 0
    assert (workdir / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert lines[-2].startswith("sample:\nthe rule")
    assert lines[-1].splitlines() == [
        "next:",
        f"  {spelled.command('generate')} --workdir={workdir} --prompt='the rule'",
        f"  {spelled.command('evaluate')} --workdir={workdir}",
        f"  {spelled.program('tensorboard') or 'tensorboard'} --logdir={workdir}/tensorboard"
        + ("" if spelled.program("tensorboard") else "  # after pip install tensorboard"),
    ]
    trained = load_trained(workdir, say=pytest.fail)
    jax.tree.map(np.testing.assert_array_equal, trained.params, state.params)
    tokenizer = load_tokenizer(workdir)
    assert tokenizer.decode(tokenizer.encode("the rule")) == "the rule"


def test_commands_are_spelled_as_the_shell_finds_them(tmp_path, monkeypatch):
    environment = tmp_path / "clone" / ".venv" / "bin"
    environment.mkdir(parents=True)
    for name in ("python", "python3", "carve-jax"):
        (environment / name).write_text("#!/bin/sh\n")
        (environment / name).chmod(0o755)
    monkeypatch.setattr("sys.executable", str(environment / "python3"))
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path / "clone")
    assert spelled.command("evaluate") == ".venv/bin/python -m experiments.evaluate"
    assert spelled.program("tensorboard") is None
    monkeypatch.chdir(tmp_path / "clone" / ".venv")
    monkeypatch.setenv("PATH", str(environment))
    assert spelled.command("evaluate") == "python -m experiments.evaluate"
    monkeypatch.setattr("sys.argv", ["carve-jax train"])
    assert spelled.command("evaluate") == "carve-jax evaluate"
    monkeypatch.setenv("PATH", "")
    assert spelled.command("evaluate") == "bin/carve-jax evaluate"
    monkeypatch.setattr("sys.argv", ["train.py"])
    (environment / "python").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))  # another python is none of ours
    (tmp_path / "python").write_text("#!/bin/sh\n")
    (tmp_path / "python").chmod(0o755)
    assert spelled.command("evaluate") == "bin/python3 -m experiments.evaluate"


def test_other_data_is_refused(text_run):
    shutil.rmtree(text_run.config.data.path)
    text_data(Path(text_run.config.data.path), extra="one more")
    said = r"not what this run was trained on \(eval_bytes, .*train_tokens changed\)"
    with pytest.raises(UserError, match=said):
        train(text_run.config, text_run.workdir)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model.gates", "gate_chunk", 32),
        pytest.param("model", "norm_eps", 0.1, marks=pytest.mark.slow),
        pytest.param("optimizer", "beta2", 0.5, marks=pytest.mark.slow),
    ],
)
def test_the_checkpoint_s_own_config_is_believed(golden, tmp_path, section, field, value):
    workdir = tmp_path / "copy"
    shutil.copytree(golden[0], workdir)
    stored = json.loads((workdir / "config.json").read_text())
    fields = functools.reduce(dict.__getitem__, section.split("."), stored)
    was = fields[field]
    fields[field] = value
    (workdir / "config.json").write_text(json.dumps(stored))
    said = f"step 6 was trained with .*: {section}.{field} is {was} there and {value} here; restore"
    with pytest.raises(UserError, match=said):
        load_trained(workdir)
    changed = tiny_config(**{f"{section}.{field}".replace(".", "__"): value})
    with pytest.raises(UserError, match=said):
        train(changed, workdir)
    fields[field], stored["log_every"] = was, 3  # which changes nothing that is learned
    (workdir / "config.json").write_text(json.dumps(stored))
    assert load_trained(workdir).step == 6
