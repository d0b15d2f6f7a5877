"""The README's words hold: its examples run, and CI runs the command it gives for the tests."""

import pytest

from tests.markdown import ROOT, python_of, shell_of

README = ROOT / "README.md"


def test_it_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 200


def test_a_layer_in_a_network_runs() -> None:
    layer, _ = python_of(README)
    scope: dict = {}
    exec(layer, scope)
    assert scope["y"].shape == (2, 100, 32)


def test_the_ten_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    _, example = python_of(README)
    scope: dict = {}
    exec(example, scope)
    assert scope["logits"].shape == (1, 32, 257)
    assert capsys.readouterr().out.startswith("[[")


def test_ci_runs_the_command_for_the_tests() -> None:
    _, tests = shell_of(README)
    assert tests in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
