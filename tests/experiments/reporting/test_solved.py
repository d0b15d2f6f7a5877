"""Tasks that are solved or not, what was tuned, where we lose, and the record that stays."""

import json
import math

import pytest

from carve_jax.errors import UserError
from carve_jax.evaluation import statistics
from experiments.reporting import figures, results, tables
from experiments.reporting.answer import headlines, where_we_lose
from experiments.reporting.compare import compare
from experiments.reporting.solved import count_solved
from experiments.reporting.sweep import read_sweep
from experiments.reporting.tables import Findings
from experiments.sweeps.tuning import Choice, Tuning, write_choice
from tests.experiments.reporting.command import run
from tests.experiments.sweeps.made_up import ACCURACY, write_sweep

TITLES = {"gdn2": "GDN-2", "carve": "CARVE", "carve_blind": "CARVE, blind"}
SOLVED = ACCURACY | {"solved": 0.98}


@pytest.fixture
def workdir(tmp_path):
    """Eight seeds: CARVE solves seven, the gates that see nothing the last one, CARVE's miss."""

    def truth(task, variant, seed):
        return 1.0 if (variant == "carve") == (seed < 7) else 0.75

    path = write_sweep(tmp_path / "sweep", TITLES, truth, seeds=8, tasks={"erase": [SOLVED]})
    for run_id in ("erase.carve.s0", "erase.carve.s1"):  # from step 100 on
        file = path / "runs" / run_id / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line, value in zip(lines, (0.5, 0.99, 0.9, 1.0), strict=True):
            line["eval_accuracy"] = value
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_an_exact_test_of_pairs():
    assert statistics.sign_test_p(6, 0) == statistics.sign_test_p(0, 6) == 2 / 64
    assert statistics.sign_test_p(7, 1) == pytest.approx(2 * 9 / 256)
    assert statistics.sign_test_p(5, 5) == statistics.sign_test_p(0, 0) == 1.0


def test_solved_seeds_are_counted_and_paired(workdir):
    found = {each.variant: each for each in count_solved(read_sweep(workdir))}
    assert [each.number for each in found.values()] == [1, 7, 1]
    carve, blind = found["carve"], found["carve_blind"]
    assert (carve.wins, carve.losses, carve.p) == (7, 1, pytest.approx(0.0703125))
    assert carve.corrected_p == pytest.approx(2 * carve.p)
    assert (blind.wins, blind.losses, blind.p) == (0, 0, 1.0)
    assert math.isnan(found["gdn2"].p)
    # The other seeds' curves come from above, as those of a loss do.
    assert carve.steps[0] == carve.steps[1] == 100
    assert carve.steps[7] == math.inf == blind.median_steps
    assert carve.median_steps <= 100
    assert (carve.longest, carve.task.name) == (200, "erase")


def test_a_report_tells_who_solves_it_and_where_we_lose(workdir):
    assert run(f"--workdir={workdir}") == 0
    text = (workdir / "report" / "report.md").read_text()
    first = text[: text.index("## Where we lose")]
    assert first.splitlines()[2].startswith("GDN-2 (Gated DeltaNet-2) is a layer of language model")
    assert first.index("![Which seeds solve the task](erase_seeds.png)") < first.index("erase**")
    assert "**Seeds that solve it:** GDN-2 1 of 8, CARVE 7 of 8 (p 0.141) and CARVE, blind" in first
    assert "**Untuned.** All variants train with the settings of the task's config" in first
    assert "| CARVE | 7 of 8 |" in text
    assert "| CARVE, blind | 1 of 8 | over 200 | 0 | 0 | 1.000 | 1.000 |" in text
    losses = text[text.index("## Where we lose") : text.index("## What was compared")]
    assert "Nowhere in this sweep, by any of its metrics" in losses
    page = (workdir / "report" / "report.html").read_text()
    assert page.count('<p class="chart"><strong>') == page.count("<svg") == 4
    assert "Which seeds solve the task" in page
    assert "carve_blind" not in text


def test_what_we_lose_by_is_said_shown_or_not(tmp_path):
    def truth(task, variant, seed):
        return 0.9 - {"gdn2": 0, "carve": 0.05, "carve_blind": 1e-5}[variant] * seed

    path = write_sweep(tmp_path / "sweep", TITLES, truth, seeds=3, tasks={"t": [ACCURACY]})
    sweep = read_sweep(path)
    comparisons = compare(sweep, alpha=0.05, smallest={})
    found = Findings(sweep, comparisons, 0.05, [], {}, "", None)
    text = "".join(where_we_lose(found))
    assert "- t, held-out accuracy: CARVE is behind GDN-2 by 0.050, not shown." in text
    assert "CARVE, blind is behind" not in text  # by 0.000
    (told,) = headlines(found, comparisons[:1])
    assert "CARVE (−0.050, −0.174 to +0.074; 3 seeds would show 0.1" in told


def test_choices_are_shown_and_edges_flagged(workdir):
    record = json.loads((workdir / "sweep.json").read_text())
    tuning = Tuning("optimizer.peak_learning_rate", (0.001, 0.01, 0.1), (1000,), 50)
    record["tune"] = {**tuning._asdict(), "runs": []}
    (workdir / "sweep.json").write_text(json.dumps(record))
    for variant, value in (("gdn2", 0.01), ("carve", 0.1)):
        choice = Choice(tuning, value, ((0.5,), (0.6,), (0.7 if value == 0.1 else None,)))
        write_choice(workdir, "erase", variant, choice)
    sweep = read_sweep(workdir)
    text = tables.tuning_words(sweep) + tables.choices(sweep)
    assert "Untuned" not in text
    assert (
        "The peak learning rate of each variant is, for each task, the one of 0.001, 0.01" in text
    )
    assert "over 1 seed (1000, 50 steps each), which are none of the comparison's." in text
    assert "**At an edge of the grid** for CARVE on erase" in text
    assert "| erase | CARVE | 0.1 (edge) | 0.5000 | 0.6000 | 0.7000 |" in text
    assert "| erase | GDN-2 | 0.01 | 0.5000 | 0.6000 | diverged |" in text
    assert "1 choice is still open." in text
    (workdir / "results.json").write_text(results.to_json(sweep))
    again, _ = results.read_results(workdir / "results.json")
    assert again.choices == sweep.choices


def test_results_are_enough_to_compare_again(workdir):
    sweep = read_sweep(workdir)
    path = workdir / "results.json"
    path.write_text(results.to_json(sweep))
    again, note = results.read_results(path)
    assert note == ""
    before, after = (compare(each, alpha=0.05, smallest={}) for each in (sweep, again))
    assert [(e.variant, e.verdict, e.corrected_p) for e in before] == [
        (e.variant, e.verdict, e.corrected_p) for e in after
    ]
    for old, new in zip(count_solved(sweep), count_solved(again), strict=True):
        assert (old.steps, old.wins, old.seeds) == (new.steps, new.wins, new.seeds)
    assert [r.rate for r in again.runs] == [r.rate for r in sweep.runs]
    assert again.commits == sweep.commits
    found = json.loads(path.read_text())
    del found["results"]["erase.carve.s0"]
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"no result of erase\.carve\.s0"):
        results.read_results(path)


def test_many_variants_get_axes_of_their_own(tmp_path):
    titles = {"gdn2": "GDN-2"} | {f"v{i}": f"variant {i}" for i in range(7)}
    path = write_sweep(tmp_path / "sweep", titles, lambda task, variant, seed: 0.5 + seed, seeds=2)
    sweep = read_sweep(path)
    drawn = figures.curves(sweep, sweep.tasks[0]).axes
    assert [axes.get_title() for axes in drawn] == [*list(titles.values())[1:], ""]
    assert {len(axes.lines) for axes in drawn[:7]} == {2}
