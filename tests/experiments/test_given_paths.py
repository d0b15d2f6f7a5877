"""Paths given to commands: one that cannot be is one sentence and exit 2, and nothing is made."""

import importlib
import re
from pathlib import Path

import pytest

from carve_jax.errors import UserError
from carve_jax.files import made_directory, output_file
from carve_jax.training.workdir import claim_workdir
from experiments import cli
from tests.training.helpers import tiny_config

ROOT = Path(__file__).parents[2]
TEXT = Path(__file__).resolve()
COMMANDS = {
    "train": (f"--config={ROOT}/configs/quickstart.py", "--workdir"),
    "evaluate": ("--workdir",),
    "generate": ("--prompt=x", "--workdir"),
    "sweep": (f"--config={ROOT}/configs/sweeps/tiny.py", "--workdir"),
    "report": ("--workdir",),
    "prepare_data": (f"--input={TEXT}", "--output"),
    "benchmark": ("--output",),
    "plan": (f"--config={ROOT}/configs/quickstart.py", "--compile=no", "--output"),
    "memory": ("--output",),
    "theory": ("--output",),
    "faults": (f"--config={ROOT}/configs/mqar.py", "--output"),
    "rented_gpu": ("--output",),
}
"""Arguments of each command that reads or makes a path; the last is the flag that names it."""

ODD = (
    "gs://bucket/run",
    "s3:/bucket/run",
    "dangling/run",
    "/proc/nowhere/run",
    "file/run",
    "a" * 300,
)


def main_of(name):
    package = (ROOT / "experiments" / name).is_dir()
    return importlib.import_module(f"experiments.{name}{'.__main__' if package else ''}").main


def test_every_command_with_such_a_flag_is_tried():
    sources = [*ROOT.glob("experiments/*.py"), *ROOT.glob("experiments/*/__main__.py")]
    flag = re.compile(r'(?:DEFINE_string|text)\(\s*"(?:workdir|output)"')
    found = {
        path.parent.name if path.stem == "__main__" else path.stem
        for path in sources
        if flag.search(path.read_text(encoding="utf-8"))
    }
    assert found == set(COMMANDS)


TRIED = [
    (command, given)
    for command in COMMANDS
    for given in (ODD if command not in ("train", "sweep") else ODD[2:3])  # seconds each
]


@pytest.mark.parametrize(("command", "given"), TRIED)
def test_a_path_that_cannot_be(tmp_path, monkeypatch, capsys, command, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "file").touch()
    *arguments, flag = COMMANDS[command]
    assert cli.call(main_of(command), ["command", *arguments, f"{flag}={given}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert given[:40] in line
    assert len(line) < 600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file"]


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.directory_of("~/run", "workdir", "a directory") == tmp_path / "run"
    assert not (tmp_path / "run").exists()
    assert made_directory("~/a/b", "--output") == tmp_path / "a" / "b"
    assert output_file("~/c/d.json") == tmp_path / "c" / "d.json"
    assert (tmp_path / "a" / "b").is_dir()
    assert (tmp_path / "c").is_dir()


def test_the_library_makes_no_directory_named_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^--workdir=~/run: only commands expand ~: give /"):
        claim_workdir(Path("~/run"), tiny_config().to_dict())
    assert not list(tmp_path.iterdir())


def test_directories_above_one_that_cannot_be_made_do_not_stay(tmp_path):
    with pytest.raises(UserError, match="name too long"):
        made_directory(tmp_path / "new" / "er" / ("a" * 300), "--workdir")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match="cannot be written: make it writable"):
        made_directory(tmp_path, "--workdir")


@pytest.mark.parametrize("given", ["/dev/null", "."])
def test_a_result_replaces_nothing_but_a_file(given):
    with pytest.raises(UserError, match="is no file: give one, new or to be replaced"):
        output_file(given)
