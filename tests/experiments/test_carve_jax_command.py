"""`carve-jax`: every command from any folder, and configs that come with what is installed."""

import importlib
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

from experiments import __main__ as command
from experiments import cli

ROOT = Path(__file__).parents[2]


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["carve-jax", *arguments])
    return command.main()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_alone_it_lists_the_commands(monkeypatch, capsys, arguments):
    assert call(monkeypatch, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  train         Trains a language model: the main job." in lines
    listed = {line.split()[0] for line in lines[lines.index("") :] if line.startswith("  ")}
    assert {"train", "evaluate", "generate", "theory", "rented_gpu"} <= listed
    assert not listed & {"cli", "__init__", "__main__"}
    assert max(map(len, lines)) <= 100


def test_an_unknown_command_is_one_sentence(monkeypatch, capsys):
    assert call(monkeypatch, "evaluat", "--workdir=x") == 2
    assert capsys.readouterr().err == (
        "error: unknown command 'evaluat'; did you mean 'evaluate'?\n"
    )


def test_a_command_is_run_as_its_module_is(monkeypatch):
    ran = []
    monkeypatch.setattr(runpy, "run_module", lambda *given, **how: ran.append((given, how)))
    assert call(monkeypatch, "train", "--workdir=x") == 0
    assert ran == [(("experiments.train",), {"run_name": "__main__", "alter_sys": True})]
    assert sys.argv == ["carve-jax train", "--workdir=x"]


def test_the_projects_configs_are_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.load_config("configs/quickstart.py", []).steps == 200
    own = tmp_path / "configs" / "quickstart.py"
    own.parent.mkdir()
    own.write_text(
        (ROOT / "configs" / "quickstart.py").read_text("utf-8").replace("steps = 200", "steps = 7")
    )
    assert cli.load_config("configs/quickstart.py", []).steps == 7  # the folder's own goes first


def test_what_is_installed_holds_what_the_command_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    module, _, name = project["project"]["scripts"]["carve-jax"].partition(":")
    assert getattr(importlib.import_module(module), name) is command.main
    settings = project["tool"]["setuptools"]
    assert {"configs*", "experiments*"} <= set(settings["packages"]["find"]["include"])
    for pattern in settings["package-data"]["experiments"]:
        assert list((ROOT / "experiments").glob(pattern)), pattern
