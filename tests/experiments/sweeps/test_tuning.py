"""A sweep tunes each variant on seeds of its own, and compares what was chosen."""

import functools
import json
from pathlib import Path

import pytest

from carve_jax.errors import UserError
from configs.sweeps import parts, tiny
from experiments import cli, sweep
from experiments.sweeps import listing
from experiments.sweeps.plan import make_plan
from experiments.sweeps.runner import Runner
from experiments.sweeps.tuning import Choice, Tuning, choose, read_choice
from tests.experiments.sweeps.harness import fake_command

RATE = "optimizer.peak_learning_rate"
FACTS = {
    "backend": "cpu", "devices": ["cpu"], "commit": "a" * 40, "uncommitted_changes": False,
    "started": "2026-01-01", "versions": {},
}  # fmt: skip
TUNING = Tuning(RATE, (0.1, 0.01, 0.001), (7, 8), 0)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """The command with fake runs: (exit code, stdout, stderr)."""
    config = tiny.get_config()
    config.tune = parts.tune(0.001, 0.01, 0.1, seeds=(7,), steps=4)
    monkeypatch.setattr(sweep, "probe", lambda: FACTS)
    monkeypatch.setattr(cli, "load_config", lambda *_: config)
    monkeypatch.setattr(
        sweep, "Runner", functools.partial(Runner, command=fake_command, pause=0.02)
    )

    def call(*arguments, best="0.01"):
        monkeypatch.setenv("FAKE_BEST_RATE", best)
        argv = ["sweep", "--config=x", f"--workdir={tmp_path}", "--set.steps=6", *arguments]
        return cli.call(sweep.main, argv), *capsys.readouterr()

    return call


def rate_of(tmp_path, run):
    config = json.loads((tmp_path / "runs" / run / "config.json").read_text())
    return config["optimizer"]["peak_learning_rate"]


def test_the_best_mean_is_chosen():
    chosen = choose(TUNING, [(0.5, 0.7), (0.9, 0.1), (0.8, 0.8)], better="higher")
    assert (chosen.value, chosen.at_edge) == (0.001, True)
    assert chosen.means == pytest.approx({0.1: 0.6, 0.01: 0.5, 0.001: 0.8})
    assert choose(TUNING, [(0.5, 0.7), (0.9, 0.1), (0.8, 0.8)], better="lower").value == 0.01
    # A value with which a run diverged is no candidate; of equals, the middle of the grid is taken.
    diverged = choose(TUNING, [(0.9, None), (0.5, 0.5), (0.1, 0.1)], better="higher")
    assert (diverged.value, diverged.at_edge, diverged.means[0.1]) == (0.01, False, None)
    assert choose(TUNING, [(1.0, 1.0)] * 3, better="higher").value == 0.01
    assert choose(TUNING, [(None, 0.5)] * 3, better="higher") is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"field": "optimzer.x"}, "tune.field is 'optimzer.x': give one of the optimizer"),
        ({"field": "optimizer.rate"}, "tune.recall.gdn2.0.001.s7 sets optimizer.rate"),
        ({"grid": (0.1,)}, r"tune.grid is \(0.1,\): give different numbers, at least two"),
        ({"seeds": (1, 7)}, "tunes with the seed 1, which is one of the comparison"),
        ({"seeds": ()}, r"tune.seeds are \(\): give different whole numbers"),
        ({"steps": -1}, "tune.steps is -1: give a whole number from 0"),
        ({"sedes": (7,)}, "the sweep's tune"),
    ],
)
def test_a_tuning_that_is_wrong_is_refused(changes, said):
    config = tiny.get_config()
    config.tune = parts.tune(0.001, 0.01, seeds=(7, 8)) | changes
    with pytest.raises(UserError, match=said):
        make_plan(config, [])


def test_a_variant_may_not_set_what_is_tuned():
    config = tiny.get_config()
    config.update({"extra": [parts.value("x", "?", {RATE: 0.1})], "tune": parts.tune(0.01, 0.1)})
    with pytest.raises(UserError, match=f"tunes {RATE}, which the variant 'x' sets"):
        make_plan(config, [])


def test_every_variant_trains_with_its_own_best(command, tmp_path, monkeypatch):
    assert command("--count")[1] == "10\n"
    monkeypatch.setattr(
        listing, "estimated_seconds", lambda plan, *_: ({r.id: 1.0 for r in plan.every}, "a test")
    )
    _, out, _ = command("--dry_run", "--jobs=1")
    assert "10 runs, 1 at once" in out
    assert out.splitlines()[1].split()[:3] == ["tune.recall.gdn2.0.001.s7", "2,729", "2,048"]
    code, out, err = command()
    assert (code, err) == (0, "")
    assert "10 of 10 runs are done" in out
    assert {rate_of(tmp_path, f"recall.{v}.s{s}") for v in ("gdn2", "carve") for s in (0, 1)} == {
        0.01
    }
    choice = read_choice(tmp_path, "recall", "carve")
    assert (choice.value, choice.at_edge, choice.tuning.seeds) == (0.01, False, (7,))
    assert choice.means[0.01] == 1.0
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert [run["id"] for run in record["runs"]] == [
        f"recall.{v}.s{s}" for s in (0, 1) for v in ("gdn2", "carve")
    ]
    assert record["tune"]["field"] == RATE
    assert len(record["tune"]["runs"]) == 6
    # Chosen once: the same command finds all done, and keeps the choice.
    code, out, _ = command(best="0.1")
    assert "10 of 10 runs came to their end before" in out
    assert read_choice(tmp_path, "recall", "carve") == choice
    (tmp_path / "tuning" / "recall.carve.json").write_text("{")
    assert "delete it to have the choice made again" in command()[2]


def test_a_comparison_does_not_start_before_its_tuning(command, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        command("--index=6")
    out = capsys.readouterr().out
    assert "recall.gdn2.s0: waiting, its variant is not tuned: tune.recall.gdn2.0.001.s7 and" in out
    assert command("--only=tune.*.gdn2.*", best="1.0")[0] == 0
    assert command("--only=recall.gdn2.*")[0] == 0
    assert rate_of(tmp_path, "recall.gdn2.s1") == 0.1
    assert read_choice(tmp_path, "recall", "gdn2").at_edge
    with pytest.raises(SystemExit, match="1"):
        command("--only=recall.carve.*")
    assert command()[0] == 0
    assert rate_of(tmp_path, "recall.carve.s1") == 0.01


def test_a_choice_says_what_it_was_made_of(tmp_path):
    assert read_choice(tmp_path, "t", "v") is None
    (tmp_path / "tuning").mkdir()
    record = {**TUNING._asdict(), "value": 0.01, "results": [[0.5, None], [0.5, 0.5], [0.1, 0.1]]}
    path = tmp_path / "tuning" / "t.v.json"
    path.write_text(json.dumps(record))
    assert read_choice(tmp_path, "t", "v") == Choice(
        TUNING, 0.01, ((0.5, None), (0.5, 0.5), (0.1, 0.1))
    )
    for change in ({"value": 5.0}, {"results": [[0.5]] * 3}, {"grid": "x"}):
        path.write_text(json.dumps(record | change))
        with pytest.raises(UserError, match="cannot be read"):
            read_choice(tmp_path, "t", "v")
    assert Path(path).exists()
