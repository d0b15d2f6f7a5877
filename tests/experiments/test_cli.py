"""Flags, configs and exit codes: a user's mistake is one sentence."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from carve_jax.errors import UserError
from carve_jax.evaluation.harness_run import Harness
from carve_jax.training.processes.distributed import PeerLost
from carve_jax.training.processes.stopping import Interrupted, TrainingDiverged
from carve_jax.training.settings import flatten
from experiments import cli, evaluate, sweep, train

CONFIG = "configs/quickstart.py"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no good"), 2, "error: no good\n"),
        (TrainingDiverged(7, ["head"], "none"), 3, "error: training diverged at step 7: NaN"),
        (Interrupted(signal.SIGINT, "step 3"), 130, "interrupted: step 3; run the same command"),
        (Interrupted(signal.SIGTERM, "step 3"), 143, "interrupted: step 3"),
        (KeyboardInterrupt(), 130, "error: stopped at once"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "error: no space left on the dev"),
        (
            PermissionError(errno.EACCES, "Permission denied", "x\n"),
            2,
            "error: Permission denied ('x",
        ),
        (OSError(errno.EMFILE, "Too many open files"), 2, "error: Too many open files: allow more"),
        (OSError("y\n" * 10**6), 2, "error: y y y"),
    ],
)
def test_errors_become_a_sentence_and_a_code(capsys, error, code, said):
    def main(argv):
        raise error

    assert cli.call(main, ["command"]) == code
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert len(err.splitlines()) == 1


def test_a_bug_keeps_its_traceback():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.call(main, ["command"])


def test_overrides_keep_their_types():
    config = cli.load_config(
        CONFIG,
        [
            "--config.steps=3",
            "--config.optimizer.peak_learning_rate=1",
            "--config.model.num_key_heads=1",
            "--config.model.tie_embeddings",
            "--config.model.pattern=('carve','swa')",
        ],
    )
    assert config.steps == 3
    assert config.optimizer.peak_learning_rate == 1.0
    assert config.model.num_key_heads == 1
    assert config.model.tie_embeddings is True
    assert config.model.pattern == ("carve", "swa")


@pytest.fixture(scope="module")
def run_config(tmp_path_factory):
    """A run's config.json."""
    path = tmp_path_factory.mktemp("run") / "config.json"
    config = cli.load_config(CONFIG, ["--config.model.attention_heads=3"])
    path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["model.pattern=('gdn2','carve')"], "model.pattern", ("gdn2", "carve")),
        (["model.pattern=gdn2", "model.pattern=carve"], "model.pattern", ("gdn2", "carve")),
        (["data.paths=/a"], "data.paths", ("/a",)),
        (["data.weights=(1,2)"], "data.weights", (1, 2)),
        (["profile_steps=(1,2)"], "profile_steps", (1, 2)),
        (["model.num_key_heads=1"], "model.num_key_heads", 1),
        (["model.gates.content=False"], "model.gates.content", False),
        (["model.gates.decay=head"], "model.gates.decay", "head"),
        (["model.gates.gate_chunk=16"], "model.gates.gate_chunk", 16),
        (["model.gate_chunk=16"], "model.gates.gate_chunk", 16),  # where it was before
        (["model.decay=head", "model.gates.decay=None"], "model.gates.decay", None),
        (["model.layer.short_conv=False"], "model.layer.short_conv", False),
        (["model.layer.scale=1"], "model.layer.scale", 1.0),
        (["model.implementation=chunked"], "model.implementation", "chunked"),
        (["model.attention_heads=None"], "model.attention_heads", None),
        (["model.gates.decay=head", "model.gates.decay=None"], "model.gates.decay", None),
        (["model.gates.content=None", "model.gates.content=True"], "model.gates.content", True),
        (["sample_prompt=None"], "sample_prompt", "None"),
    ],
)
def test_a_config_and_its_json_take_the_same_overrides(run_config, arguments, field, value):
    flags_ = [f"--config.{argument}" for argument in arguments]
    first, second = (flatten(cli.load_config(path, flags_)) for path in (CONFIG, run_config))
    assert first[field] == second[field] == value
    assert type(first[field]) is type(second[field])
    assert second.pop("model.attention_heads") == (None if field == "model.attention_heads" else 3)
    del first["model.attention_heads"]
    assert first == second


def test_an_optional_field_keeps_its_type_in_json(run_config):
    with pytest.raises(flags.Error, match="num_key_heads=two: invalid literal for int"):
        cli.load_config(run_config, ["--config.model.num_key_heads=two"])


def test_one_mixer_is_a_pattern():
    assert cli.load_config(CONFIG, ["--config.model.pattern=gdn2"]).model.pattern == ("gdn2",)


def mistake(argv, capsys, main=train.main):
    """Exit code 2 and one line; the line."""
    assert cli.call(main, ["command", *argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--config.modle.layers=3", "error: config has no field 'modle'; did you mean 'model'?"),
        ("--config.model.layrs=3", "error: config.model has no field 'layrs'; did you mean 'laye"),
        ("--config.steps.x=3", "error: --config.steps.x: config.steps is a value and has no fiel"),
        ("--config.steps=many", "error: flag --config.steps=many: give a whole number"),
        ("--config.z_loss=much", "error: flag --config.z_loss=much: give a number"),
        ("--config.steps=0", "error: config.steps is 0, but must be a whole number of at least 1"),
        ("--wrkdir=x", "error: unknown flag --wrkdir"),
        ("word", "error: unexpected argument 'word'"),
        ("--config.model.pattern=crave", "error: config.model: pattern has an unknown mixer"),
        ("--config.model.num_key_heads=2", "error: config.model: num_key_heads=2 does not divide"),
        ("--config.data.source=stdlibs", "error: data.source has the value 'stdlibs'"),
    ],
)
def test_mistakes_in_arguments(tmp_path, capsys, argument, said):
    workdir = tmp_path / "run"
    arguments = [f"--config={CONFIG}", f"--workdir={workdir}", argument]
    assert mistake(arguments, capsys).startswith(said)
    assert not workdir.exists()


def test_missing_flags(tmp_path, capsys):
    assert mistake([], capsys).startswith("error: --config is missing: give a file such as")
    assert mistake([f"--config={CONFIG}"], capsys).startswith("error: --workdir is missing")


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (train.main, ["--confg=x.py"], "error: unknown flag --confg; did you mean 'config'?"),
        (train.main, ["--steps", "5"], "error: unknown flag --steps; "),
        (train.main, ["--config.steps", "5"], "'5': flags look like --config.steps=5"),
        (
            train.main,
            [f"--config={CONFIG}", "--describe", "--compare=no.py"],
            "error: --compare=no.py: no such file",
        ),
        (
            sweep.main,
            ["--config=configs/sweeps/tiny.py", "--workdir=x", "--base=no.py"],
            "error: --base=no.py: no such file",
        ),
        (evaluate.main, ["--workdir=x", "--tasks="], "error: --tasks is empty: give names"),
        (evaluate.main, ["--workdir=x", "--config.steps=3"], "config.steps belongs to the run"),
    ],
)
def test_what_is_wrong_is_named(capsys, main, arguments, said):
    assert said in mistake(arguments, capsys, main)


def run_alone(*arguments, **environment):
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    return subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_platform_that_is_not_here_is_one_sentence(tmp_path):
    process = run_alone(
        "experiments.train", f"--config={CONFIG}", f"--workdir={tmp_path}", JAX_PLATFORMS="tpu"
    )
    _, error = process.communicate()
    assert process.returncode == 2
    last = error.splitlines()[-1]
    assert last.startswith("error: JAX_PLATFORMS=tpu: JAX finds no such device here")
    assert "Traceback" not in error


def test_a_reader_that_leaves_ends_a_command_quietly():
    process = run_alone("experiments.train", "--help")
    process.stdout.close()  # as `| head` does
    assert process.wait() in (0, 141)
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "it has no get_config() that returns an ml_collections.ConfigDict"),
        ("def get_config(): return {}", "it has no get_config() that returns"),
        ("def get_config(: pass", "SyntaxError: "),
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named"),
    ],
)
def test_bad_config_files(tmp_path, capsys, text, said):
    path = tmp_path / "config.py"
    path.write_text(text)
    assert mistake([f"--config={path}"], capsys).startswith(f"error: --config={path}: {said}")


def test_a_config_that_is_not_there(capsys):
    line = mistake(["--config=configs/quikstart.py"], capsys)
    assert "configs/quikstart.py: no such file; did you mean 'quickstart.py'? (configs)" in line
    line = mistake(["--config=configs/sweeps/nope.py"], capsys)
    assert line.endswith("tiny.py (configs/sweeps)")
    assert "carve_1b3" not in line


def test_a_field_given_as_a_flag_is_offered_as_a_field(capsys):
    argv = ["sweep", "--config=configs/sweeps/tiny.py", "--workdir=x", "--steps=5"]
    assert cli.call(sweep.main, argv) == 2
    assert "did you mean --set.steps?" in capsys.readouterr().err
    line = mistake(["--config=configs/quickstart.py", "--steps=5"], capsys)
    assert line.endswith("unknown flag --steps; did you mean --config.steps?")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("KeyboardInterrupt", 130, "error: stopped at once, nothing was saved by this stop\n"),
        ("ImportError('x') from KeyboardInterrupt()", 130, "error: stopped at once, "),
        ("ImportError('x')", 1, "Traceback"),
    ],
)
def test_a_stop_while_a_command_is_importing_shows_no_traceback(raised, code, said):
    program = f"import sys; sys.argv[0] = '-m'; import experiments; raise {raised}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == code
    assert ended.stderr.startswith(said)


def test_an_empty_data_set(tmp_path, capsys):
    arguments = [
        f"--config={CONFIG}",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.source=token_files",
        f"--config.data.path={tmp_path}",
    ]
    assert mistake(arguments, capsys).startswith("error: ")


def test_an_unknown_task_is_told_before_a_run_is_looked_for(capsys, monkeypatch):
    # Reading all the harness's tasks takes ten seconds.
    monkeypatch.setattr(Harness, "names", lambda self: ["wikitext"])
    line = mistake(["--workdir=x", "--tasks=perplexty"], capsys, evaluate.main)
    assert "there is no task 'perplexty'; did you mean 'perplexity'" in line


def test_a_lost_process_is_one_sentence(capsys):
    def lose(argv):
        raise PeerLost("process 1 of 2 lost another process")

    assert cli.call(lose, ["command"]) == 75
    assert capsys.readouterr().err == "error: process 1 of 2 lost another process\n"


def test_flags_of_a_command_are_its_own():
    definitions = flags.FlagValues()
    flags.DEFINE_integer("number", 1, "A number.", flag_values=definitions)
    override = "--config.steps=1"
    argv = ["command", "--number=3", override]
    assert cli.parse_flags(definitions, argv, ("config",)) == [override]
    assert definitions.number == 3
    with pytest.raises(UserError, match="unknown flag --numbr; did you mean 'number'"):
        cli.parse_flags(definitions, ["command", "--numbr=3"])
    with pytest.raises(UserError, match=r"unknown flag --config\.steps; allowed are number"):
        cli.parse_flags(definitions, argv)
