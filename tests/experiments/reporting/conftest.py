"""Sweeps whose truth is known, and the report of one."""

import json

import pytest

from experiments.reporting import drawing, figures
from experiments.reporting.sweep import read_sweep
from tests.experiments.reporting.command import BROKEN, TITLES, run
from tests.experiments.sweeps.made_up import COMMIT, truth_of, write_sweep


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A sweep in which CARVE is better and KDA the same, GLA has two runs; with a theory report."""
    truth = truth_of({"gdn2": 0.0, "carve": -0.1, "kda": 0.0, "gla": 0.2}, noise=0.005)
    workdir = write_sweep(
        tmp_path_factory.mktemp("sweep") / "it",
        TITLES,
        truth,
        status=lambda run: BROKEN.get(run, {}),
    )
    png = drawing.to_png(figures.curves(read_sweep(workdir), read_sweep(workdir).tasks[0]))
    (workdir / "theory").mkdir()
    (workdir / "theory" / "memory.png").write_bytes(png)
    experiment = {
        "name": "memory", "title": "Memory holds K pairs", "claim": "It does.", "setup": "K = 8",
        "verdict": "holds within limits", "fails_where": "K < 2", "figure": "memory.png",
        "numbers": [{"name": "error", "value": 1.5e-7, "unit": "nats"}],
    }  # fmt: skip
    found = {"date": "2026-11-25", "commit": COMMIT, "experiments": [experiment]}
    (workdir / "theory" / "theory.json").write_text(json.dumps(found))
    assert run(f"--workdir={workdir}", "--min_difference=eval_bits_per_byte=0.05") == 0
    return workdir / "report"


@pytest.fixture
def small(tmp_path):
    """Two variants, one of them no different."""
    truth = truth_of({"gdn2": 0.0, "carve": 0.0})

    def make(**more):
        return write_sweep(tmp_path / "sweep", {"gdn2": "GDN-2", "carve": "CARVE"}, truth, **more)

    return make
