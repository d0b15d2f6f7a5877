"""The commands on a run directory, one after the other as a user would."""

import json
from pathlib import Path

import jax
import pytest

from carve_jax.errors import UserError
from carve_jax.training import loop
from experiments import cli, evaluate, generate, train
from experiments.generating.text import TextStream
from tests.training.helpers import text_data, tiny_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("commands")
    changes = {"steps": 2, "eval_every": 2, "checkpoint_every": 1}
    # Of the layers with a state, this one compiles fastest.
    config = tiny_config(model__vocab_size=257, model__pattern=("linear_attention",), **changes)
    config.data = text_data(directory / "data")
    loop.train(config, directory / "run")
    return directory / "run"


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="the kernels run here")
def test_kernels_that_cannot_run_are_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("CARVE_PALLAS", raising=False)
    config = tiny_config(model__implementation="pallas")
    config.data = text_data(tmp_path / "data")
    with pytest.raises(UserError, match=r"config.model.implementation: .* use 'chunked' or None"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # a mesh of two trains with the kernels, too: tests/training/test_sharding.py
def test_training_runs_the_kernels_and_says_so(tmp_path):
    config = tiny_config(model__implementation="pallas", steps=1)
    config.data = text_data(tmp_path / "data")
    loop.train(config, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert record["implementation"] == "triton"  # the backend behind "pallas"


@pytest.mark.parametrize("main", [evaluate.main, generate.main])
def test_no_run_there(tmp_path, capsys, main):
    assert cli.call(main, ["command", f"--workdir={tmp_path}"]) == 2
    assert "holds no run (config.json is missing)" in capsys.readouterr().err


def test_generate_continues_the_prompt(workdir, capsys):
    arguments = ["generate", f"--workdir={workdir}", "--prompt=the rule", "--max_new_tokens=5"]
    outputs = []
    for extra in (["--seed=1"], ["--seed=1"], ["--temperature=0"]):
        assert cli.call(generate.main, arguments + extra) == 0
        outputs.append(capsys.readouterr().out)
    assert all(text.startswith("the rule") for text in outputs)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--max_new_tokens=0", "flag --max_new_tokens=0"),
        ("--temperature=-1", "flag --temperature=-1"),
        ("--top_p=2", "flag --top_p=2"),
        ("--promt=x", "unknown flag --promt; did you mean 'prompt'?"),
        ("--top_p=0", "--top_p=0 keeps no token"),
        ("--prompt=\udcff", "--prompt='\\udcff' is not UTF-8: convert it"),
        ("--prefill_chunk=0", "flag --prefill_chunk=0"),
        ("--stop=ab", "--stop='ab' is 2 tokens of this run's tokenizer ('a' + 'b'): give a text"),
        ("--stop=", "--stop='' is 0 tokens of this run's tokenizer (none)"),
        ("--save_state=nowhere/state", "--save_state=nowhere/state: there is no such directory"),
        ("--load_state=nowhere", "--load_state=nowhere cannot be read (No such file or directory)"),
    ],
)
def test_generate_refuses(workdir, capsys, argument, said):
    assert cli.call(generate.main, ["generate", f"--workdir={workdir}", argument]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {said}")
    assert len(err.splitlines()) == 1


def generated(capsys, workdir, *arguments):
    """What the command prints."""
    argv = ["generate", f"--workdir={workdir}", "--temperature=0", *arguments]
    assert cli.call(generate.main, argv) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.slow  # always: of tokens, in tests/model
def test_prompts_of_different_lengths_are_continued_together(workdir, capsys):
    prompts = ["the rule of the delta rule", "the"]
    flags = [f"--prompt={text}" for text in prompts]
    together = generated(capsys, workdir, *flags, "--max_new_tokens=5", "--prefill_chunk=16")
    alone = [generated(capsys, workdir, flag, "--max_new_tokens=5") for flag in flags]
    assert together == "".join(f"--- {i}\n{text}" for i, text in enumerate(alone, start=1))


@pytest.mark.slow  # always: of tokens, in tests/model
def test_a_stop_ends_the_continuation_and_is_not_printed(workdir, capsys):
    arguments = ("--prompt=the rule", "--max_new_tokens=12", "--temperature=1", "--seed=4")
    free = generated(capsys, workdir, *arguments)[len("the rule") : -1]
    stop = next(c for c in free[3:] if c.isascii() and c.isprintable())
    stopped = generated(capsys, workdir, *arguments, f"--stop={stop}")
    assert stopped == "the rule" + free[: free.index(stop)] + "\n"


def test_a_saved_state_goes_on_where_it_ended(workdir, tmp_path, capsys):
    state = tmp_path / "state"
    whole = generated(capsys, workdir, "--prompt=the rule", "--max_new_tokens=9")
    first = generated(
        capsys, workdir, "--prompt=the rule", "--max_new_tokens=4", f"--save_state={state}"
    )
    rest = generated(capsys, workdir, "--max_new_tokens=5", f"--load_state={state}")
    assert first[:-1] + rest == whole
    more = generated(capsys, workdir, "--prompt= is", "--max_new_tokens=5", f"--load_state={state}")
    text = first[:-1] + " is"
    assert (
        more[3:]
        == generated(capsys, workdir, f"--prompt={text}", "--max_new_tokens=5")[len(text) :]
    )


@pytest.fixture(scope="module")
def saved_state(workdir):
    """A state that the command saved."""
    state = workdir.parent / "state"
    argv = ["generate", f"--workdir={workdir}", "--prompt=the rule", "--max_new_tokens=4"]
    assert cli.call(generate.main, [*argv, f"--save_state={state}"]) == 0
    return state


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--prompt=a", "--prompt=b"],
            "2 times --prompt, and STATE holds 1 rows: give one per row",
        ),
        (["--prompt="], "--prompt is empty: to add nothing to --load_state, leave it out"),
        (["--step=1"], "--load_state: STATE was saved with other parameters of this model"),
    ],
)
def test_a_state_that_does_not_fit_is_one_sentence(workdir, saved_state, capsys, arguments, said):
    argv = ["generate", f"--workdir={workdir}", f"--load_state={saved_state}", *arguments]
    assert cli.call(generate.main, argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: " + said.replace("STATE", str(saved_state)))
    assert len(err.splitlines()) == 1


class Bytes:
    """The part of a tokenizer that a stream uses."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def test_a_stream_waits_for_whole_characters(capsys):
    stream = TextStream(Bytes())
    printed = []
    for byte in "aé€".encode():
        stream.add(byte)
        printed.append(capsys.readouterr().out)
    assert printed == ["a", "", "é", "", "", "€"]
    for _ in range(4):
        stream.add(0xFF)
    assert capsys.readouterr().out == ""
    stream.close()
    assert capsys.readouterr().out == "\ufffd" * 4


def test_a_typo_at_the_command_line_is_one_sentence(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = ["--config=configs/quickstart.py", "--workdir=unused", "--config.modle.layers=3"]
    assert cli.call(train.main, ["train", *arguments]) == 2
    assert capsys.readouterr().err == "error: config has no field 'modle'; did you mean 'model'?\n"
