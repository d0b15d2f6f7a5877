"""Verdicts on differences that were made to be so."""

from experiments.reporting import tables
from experiments.reporting.compare import Verdict, compare
from experiments.reporting.sweep import read_sweep
from tests.experiments.sweeps.made_up import ACCURACY, BITS, write_sweep


def verdicts(tmp_path, values, metrics=(BITS,), **more):
    """Verdict by task and metric of a second variant that has these values where GDN-2 has 0."""
    write_sweep(
        tmp_path / "sweep",
        {"gdn2": "GDN-2", "carve": "CARVE"},
        lambda task, variant, seed: values[task][seed] if variant == "carve" else 0.0,
        seeds=5,
        tasks={task: list(metrics) for task in values},
    )
    found = compare(read_sweep(tmp_path / "sweep"), alpha=0.05, **{"smallest": {}, **more})
    return {each.task.name: each for each in found}


def test_verdicts(tmp_path):
    found = verdicts(
        tmp_path,
        {
            "clear": [0.5, 0.51, 0.5, 0.49, 0.5],
            "constant": [0.5] * 5,
            "same": [0.0] * 5,
            "noisy": [0.5, -0.4, 0.1, 0.3, -0.2],
            "once": [0.3, 0.1, 0.2, 0.3, 0.1],  # p 0.011 alone
            "small": [0.001, -0.001, 0.002, 0.0, 0.001],
        },
        metrics=(ACCURACY,),
        smallest={"eval_accuracy": 0.01},
    )
    assert {task: each.verdict for task, each in found.items()} == {
        "clear": Verdict.BETTER,
        # All differences being one number, Student's t would be certain; sign flips are not.
        "constant": Verdict.OPEN,
        "same": Verdict.SAME,
        "noisy": Verdict.OPEN,
        "once": Verdict.OPEN,
        "small": Verdict.SMALL,
    }
    assert found["constant"].p == 1 / 16
    assert found["once"].excludes_zero
    assert 0.01 < found["once"].p < 0.05 < found["once"].corrected_p
    assert tables.needed(found["same"], found["same"].needed) == "–"
    assert found["noisy"].needed > 5 > found["clear"].needed
    assert found["noisy"].detectable > found["clear"].detectable


def test_lower_is_better_where_it_is(tmp_path):
    assert verdicts(tmp_path, {"t": [0.5, 0.51, 0.5, 0.49, 0.52]})["t"].verdict is Verdict.WORSE


def test_further_metrics_do_not_weaken_the_first(small):
    """The same figure under a second name is no second chance for luck."""
    loss = BITS | {"title": "again"}
    twice = compare(read_sweep(small(tasks={"text": [BITS, loss]})), alpha=0.05, smallest={})
    assert [each.primary for each in twice] == [True, False]
    assert [each.corrected_p for each in twice] == [each.p for each in twice]
