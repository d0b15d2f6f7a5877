"""The README's words hold: its example runs, and CI runs the command it gives for the tests."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    scope: dict = {}
    exec(example, scope)
    assert scope["logits"].shape == (1, 32, 257)
    assert capsys.readouterr().out.startswith("[[")


def test_ci_runs_the_command_for_the_tests() -> None:
    _, tests = (block.strip() for block in blocks("sh"))
    assert tests in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_config_and_command_named_exists() -> None:
    for path in set(re.findall(r"configs/\w+\.py", README)):
        assert (ROOT / path).exists(), path
    for module in set(re.findall(r"python -m (experiments\.\w+)", README)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
