"""The ruler suite at short lengths: what it says of time and memory."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import benchmark, cli
from experiments.benchmarks import ruler
from experiments.benchmarks.ruler import PLAN, power
from experiments.measuring.memory import PeakResident

TINY = {
    "vocab_size": 257, "d_model": 16, "mlp_dim": 16, "num_heads": 1, "key_dim": 8, "value_dim": 8,
    "implementation": "recurrent",
}  # fmt: skip


@pytest.mark.slow  # always: a probe, in test_evaluate.py
def test_the_command_writes_what_it_prints(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(ruler, "PLAN", dataclasses.replace(PLAN, model=TINY))
    path = tmp_path / "ruler.json"
    argv = ["benchmark", "--suite=ruler", "--only=gdn2", "--tokens=640,1152", f"--output={path}"]
    assert cli.call(benchmark.main, argv) == 0
    record = json.loads(path.read_text())
    assert record["probe"] == "niah_single_1"
    (found,) = record["patterns"].values()
    short, long = found["lengths"]["640"], found["lengths"]["1152"]
    assert short["cache_bytes"] == long["cache_bytes"] > 0
    assert short["resident_bytes"] > 1e7
    assert found["growth"]["resident_bytes"] < 1.5
    assert short["cpu_seconds"] > 0
    assert "gdn2            1,152" in capsys.readouterr().out


def test_power() -> None:
    figures = {str(n): {"cpu_seconds": 3e-4 * n**1.5} for n in PLAN.lengths}
    assert power(PLAN.lengths, figures) == pytest.approx(1.5)
    assert power((1, 2), figures) is None


def test_what_is_held_for_a_while_is_seen() -> None:
    with PeakResident() as before:
        pass
    with PeakResident() as during:
        for _ in range(3):
            held = np.ones(1 << 23)  # 64 MB
            assert held.sum() == 1 << 23
        del held
    assert during.bytes > before.bytes + (48 << 20)
