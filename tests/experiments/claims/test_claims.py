"""Claims are judged by the committed results, and the page is what the code makes of them."""

import json

import pytest

from experiments import cli, report
from experiments.claims import (
    content_signal,
    key_axis,
    memory,
    page,
    pairs,
    scalar_write,
    text_quality,
    throughput,
)
from experiments.claims.claim import REGISTERED, Verdict
from experiments.claims.records import Records
from experiments.reporting import results
from experiments.reporting.sweep import read_sweep
from experiments.sweeps.tuning import Choice, Tuning
from tests.experiments.sweeps.made_up import ACCURACY, BITS, write_sweep

NAMES = ("gdn2", "carve", "carve_blind")
TUNE = {"field": "optimizer.rate", "grid": [1, 2, 3], "seeds": [9], "steps": 0, "runs": []}


def record(tmp_path, name, truth, task, *, seeds, variants=NAMES, tuned=True, day=REGISTERED):
    """The results of a made-up sweep, as a report leaves them."""
    titles = {variant: variant for variant in variants}
    path = write_sweep(tmp_path / "sweep", titles, truth, seeds=seeds, tasks=task)
    found = json.loads((path / "sweep.json").read_text()) | {"name": name}
    (path / "sweep.json").write_text(json.dumps(found | ({"tune": TUNE} if tuned else {})))
    folder = tmp_path / "results" / f"{day}_{name}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(results.to_json(read_sweep(path)))
    return Records(tmp_path / "results")


def test_the_page_is_made_of_the_committed_results(capsys):
    assert cli.call(report.main, ["report", "--claims"]) == 0
    assert capsys.readouterr().out == page.PAGE.read_text("utf-8"), (
        "python -m experiments.report --claims > experiments/claims/README.md"
    )


def test_the_readme_has_their_table():
    expected = page.summary(Records())
    readme = (page.PAGE.parents[2] / "README.md").read_text("utf-8")
    assert expected in readme, f"the README's table of claims is to be:\n{expected}"


def test_every_claim_is_whole_and_every_verdict_in_the_table():
    text = page.render(Records())
    for claim in page.CLAIMS:
        assert all((claim.title, claim.paper, claim.test, claim.criterion))
        assert f"](#{page._slug(claim.title)})" in text
        assert f"\n## {claim.title}\n" in text
    assert text.count("**Criterion:**") == len(page.CLAIMS)


def test_without_results_it_is_not_yet(tmp_path):
    text = page.render(Records(tmp_path))
    assert text.count("| – | – | **not yet** |") == len(page.CLAIMS)
    assert "## Theorems" not in text


@pytest.mark.parametrize(
    ("solved", "verdict"),
    [
        ({"carve": 10, "gdn2": 0, "carve_blind": 0}, Verdict.HOLDS),
        ({"carve": 10, "gdn2": 1, "carve_blind": 0}, Verdict.LIMITS),
        ({"carve": 5, "gdn2": 0, "carve_blind": 0}, Verdict.OPEN),
        ({"carve": 0, "gdn2": 0, "carve_blind": 8}, Verdict.FAILS),
    ],
)
def test_the_content_signal_by_its_criterion(tmp_path, solved, verdict):
    def truth(task, variant, seed):
        return 1.0 if seed < solved[variant] else 0.8

    task = {content_signal.TASK: [ACCURACY | {"solved": 0.98}]}
    records = record(tmp_path, "content_erase", truth, task, seeds=12)
    answer = content_signal.judge(records)
    assert answer.verdict is verdict
    assert answer.but == ()
    assert answer.ours.startswith(f"seeds that solve it: carve {solved['carve']} of 12, gdn2 ")
    assert answer.told == f"**{verdict.value}**"


def test_what_was_not_tuned_or_is_older_decides_nothing(tmp_path):
    def truth(task, variant, seed):
        return 1.0 if variant == "carve" else 0.8

    task = {content_signal.TASK: [ACCURACY | {"solved": 0.98}]}
    records = record(
        tmp_path, "content_erase", truth, task, seeds=11, tuned=False, day="2026-11-25"
    )
    assert content_signal.judge(records).told == (
        "**not shown** (untuned; 11 seeds of 12; results older than the criterion)"
    )


@pytest.mark.parametrize(
    ("shift", "better", "no_loss"),
    [
        (-0.1, Verdict.HOLDS, Verdict.HOLDS),
        (0.0, Verdict.OPEN, Verdict.HOLDS),
        (0.1, Verdict.FAILS, Verdict.FAILS),
    ],
)
def test_paired_claims_by_their_criteria(tmp_path, shift, better, no_loss):
    def truth(task, variant, seed):
        return 2.0 + seed + (shift + 0.004 * (-1) ** seed if variant != "gdn2" else 0.0)

    variants = ("gdn2", "carve", "write_scalar")
    task = {"text": [BITS]}
    records = record(tmp_path, "gdn2_vs_carve", truth, task, seeds=10, variants=variants)
    assert text_quality.judge(records).verdict is better
    assert scalar_write.judge(records).verdict is no_loss
    assert "10 paired seeds, which would show 0.0" in text_quality.judge(records).how


def test_the_newest_result_counts(tmp_path):
    for day, error in (("2026-11-25", 1e-14), ("2026-11-29", 1e-3)):
        numbers = [
            {"name": "error of one solve, key axis", "value": error},
            {"name": "error of the best one solve, value mask", "value": 0.1},
        ]
        folder = tmp_path / f"{day}_theory"
        folder.mkdir()
        (folder / "theory.json").write_text(
            json.dumps({"experiments": [{"name": "solve", "numbers": numbers}]})
        )
    answer = key_axis.judge(Records(tmp_path))
    assert (answer.verdict, answer.source) == (Verdict.FAILS, "2026-11-29_theory/theory.json")


def test_an_edge_of_the_grid_is_told_of_what_is_compared_alone(tmp_path):
    records = record(tmp_path, "gdn2_vs_carve", lambda *given: 2.0, {"text": [BITS]}, seeds=10)
    found = records.sweep("gdn2_vs_carve")
    edge = Choice(Tuning("optimizer.rate", (1.0, 2.0, 3.0), (9,), 0), 1.0, ((2.0,),) * 3)

    def told(*where):
        tuned = found._replace(sweep=found.sweep._replace(choices=dict.fromkeys(where, edge)))
        return pairs.doubts(tuned, "text", ("carve", "gdn2"), 10, 10)

    assert told(("other", "carve"), ("text", "carve_blind")) == ()
    assert told(("text", "gdn2")) == ("an optimum at the edge of its grid",)


def test_a_train_step_is_found_in_either_form_of_record(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))

    old = {name: {"tokens_per_second": 100, "gigabytes": 2.0} for name in ("carve", "gdn2")}
    write("2026-11-27_h100/figures.json", {"commit": "a" * 40, "device": "H", "train_step": old})
    assert throughput.judge(Records(tmp_path)).verdict is Verdict.HOLDS
    new = {
        "carve": {"tokens_per_second": 90, "peak_bytes": 17e8},
        "gdn2": {"tokens_per_second": 100, "peak_bytes": 2e9},
    }
    write(
        "2026-11-29_h100/run.json",
        {"card": "NVIDIA H100 80GB", "code": "b" * 12, "summary": {"train_step": {"mixers": new}}},
    )
    write("2026-11-30_h100/part.json", {"summary": {"train_step": {"mixers": {}}}})
    answer = throughput.judge(Records(tmp_path))
    assert (answer.verdict, answer.source) == (Verdict.FAILS, "2026-11-29_h100/run.json")
    assert answer.ours == "0.90 of GDN-2's tokens per second: 10% less (H100, 2026-11-29)"
    assert "commit bbbbbbb: 90 and 100 tokens per second" in answer.how
    assert memory.judge(Records(tmp_path)).told == "**holds**"
