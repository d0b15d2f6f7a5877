"""The benchmark's command: its suites are in benchmarks/, its timings are never a test's."""

import pytest

from experiments import benchmark, cli


def test_an_unknown_suite_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(benchmark.main, ["benchmark", "--suite=gpus"]) == 2
    assert "unknown suite 'gpus'" in capsys.readouterr().err
