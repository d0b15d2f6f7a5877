"""The report of sweeps whose truth is known: what it says, what it leaves out, what it refuses."""

import json
import math
import re
from pathlib import Path

import pytest

from carve_jax.evaluation.tasks import Figure, Result
from experiments import cli
from experiments.evaluating.record import Record
from experiments.reporting import drawing, theory_record, words
from experiments.reporting.compare import compare
from experiments.reporting.results import read_results
from experiments.reporting.sweep import read_sweep
from experiments.sweeps.plan import make_plan
from experiments.sweeps.store import Status, Store
from tests.experiments.reporting.command import DOWN, mistake, run
from tests.experiments.sweeps.made_up import ACCURACY, BITS, COMMIT, write_sweep

ROOT = Path(__file__).parents[3]
OTHER = "5eed" + "0" * 36


@pytest.fixture(scope="module")
def markdown(written):
    return (written / "report.md").read_text()


@pytest.fixture(scope="module")
def html(written):
    return (written / "report.html").read_text()


def row(markdown, title, table=0):
    """Cells of the n-th row that starts with `title`."""
    lines = [line for line in markdown.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", lines[table])[1:-1]]


def test_the_answer_comes_first(markdown):
    first = markdown[: markdown.index("## What was compared")]
    assert first.startswith("# Does CARVE predict text better than GDN-2?")
    assert "CARVE is **better** than GDN-2: −0.1" in first
    assert "KDA \\| \\*the\\* third differs from GDN-2 by **less than 0.05**" in first
    assert "Of 3 comparisons by the first metric of each task: 1 better, 1 no difference" in first
    assert "**3 runs of 20 gave no result**" in first


def test_the_tables_hold_the_figures_of_the_comparison(written, markdown):
    sweep = read_sweep(written.parent)
    carve = compare(sweep, alpha=0.05, smallest={})[0]
    quality = row(markdown, "CARVE")
    assert quality[1:3] == ["**better**", words.signed(carve.difference, 4)]
    assert (
        quality[3] == f"{words.signed(carve.paired.low, 4)} to {words.signed(carve.paired.high, 4)}"
    )
    assert quality[5] == "5"
    evidence = row(markdown, "CARVE", 1)
    assert evidence[1:3] == ["5", words.number(float(carve.paired.sigma), 1)]
    assert evidence[5:7] == [words.probability(carve.p), words.probability(carve.corrected_p)]
    assert row(markdown, "CARVE", 2)[1:3] == ["780,000 (−2.5%)", "12,325"]
    assert row(markdown, "GLA")[-1] == "**2 of 5**"
    assert "**2 runs at a time shared the machine**" in markdown


def test_runs_without_a_result_are_shown_with_their_reason(markdown):
    section = markdown[markdown.index("## Runs that do not count") : markdown.index("## Theory")]
    assert f"GLA on text, seed 1: diverged at step 100 after 1 attempt: `` {DOWN} ``" in section
    assert "GLA on text, seed 2: running at step 100 after 1 attempt: `it has not ended" in section
    assert (
        "GLA on text, seed 3: waiting at step 0 after 0 attempts: `it has not started`" in section
    )
    assert row(markdown, "GLA", -1)[2:5] == ["diverged", "running", "waiting"]


def test_every_table_is_whole(markdown):
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, block


def test_the_page_needs_nothing_but_itself(written, html):
    assert not re.search(r"<(script|link|iframe)|@import|url\((?!#)", html)
    assert set(re.findall(r'src="([^"]{0,22})', html)) == {"data:image/png;base64,"}
    named = re.findall(r"\]\((\w+\.png)\)", (written / "report.md").read_text())
    assert {path.name for path in written.glob("*.png")} == set(named)
    drawn = [name for name in named if name != "memory.png"]
    assert len(drawn) == 3  # all are as fast and as large
    assert html.count("<svg") == len(drawn)
    assert drawing.INK not in html  # drawings take the colours of the page
    for target in re.findall(r'href="#([\w-]+)"', html):
        assert f'id="{target}"' in html
    assert html.count('class="scroll"') == html.count("<table>")


def test_what_a_run_said_stays_text(html):
    assert "<b>diverged" not in html
    assert "training &lt;b&gt;diverged&lt;/b&gt; at step 100: NaN | in `loss`" in html
    assert "KDA | *the* third" in html


def test_theory_is_in_the_report(markdown, html):
    assert "| Memory holds K pairs | **holds within limits** |" in markdown
    assert "Where it fails: K \\< 2" in markdown
    assert "| error | 1.5e−07 nats |" in markdown
    assert html.count("data:image/png") == 1


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        ("../../secret.png", "names '../../secret.png', which is no plain name"),
        ("/etc/passwd", "names '/etc/passwd', which is no plain name"),
        (["x.png"], "which is no plain name"),
        ("link.png", "link.png is a link that leads out of its folder"),
        ("text.png", "text.png is no PNG: run experiments.theory again"),
        ("folder.png", "folder.png cannot be read (it is a directory)"),
    ],
)
def test_theory_shows_no_file_but_its_own_pictures(written, tmp_path, capsys, figure, said):
    (tmp_path / "secret.png").write_bytes(theory_record.PNG + b"secret")
    directory = tmp_path / "in" / "theory"
    (directory / "folder.png").mkdir(parents=True)
    (directory / "text.png").write_text("root:x:0:0")
    (directory / "link.png").symlink_to(tmp_path / "secret.png")
    found = json.loads((written.parent / "theory" / "theory.json").read_text())
    found["experiments"][0]["figure"] = figure
    (directory / "theory.json").write_text(json.dumps(found))
    output = tmp_path / "out"
    flags = f"--workdir={written.parent}", f"--theory={directory}", f"--output={output}"
    assert said in mistake(capsys, *flags)
    assert not output.exists()


@pytest.mark.parametrize("where", ["task", "run"])
def test_names_of_a_sweep_stay_in_its_folder(written, tmp_path, capsys, where):
    record = json.loads((written.parent / "sweep.json").read_text())
    if where == "task":
        record["tasks"]["../../up"] = record["tasks"].pop("text")
    else:
        record["runs"][0]["id"] = "../../up"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "sweep.json").write_text(json.dumps(record))
    said = mistake(capsys, f"--workdir={tmp_path / 'in'}")
    assert "sweep.json names '../../up', which is no plain name" in said
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_theory_without_its_picture_is_one_sentence(written, tmp_path, capsys):
    text = (written.parent / "theory" / "theory.json").read_text()
    (tmp_path / "theory.json").write_text(text)
    said = mistake(capsys, f"--workdir={written.parent}", f"--theory={tmp_path}")
    assert said.endswith("shows memory.png, which is not beside it: run experiments.theory again")


def test_one_seed_gives_no_interval_and_says_why(small):
    workdir = small(seeds=1)
    assert run(f"--workdir={workdir}", f"--output={workdir}/out") == 0
    markdown = (workdir / "out" / "report.md").read_text()
    assert row(markdown, "CARVE")[3] == "none: one seed"
    assert "no interval or p-value is given, because a single difference" in markdown
    assert "How sure that is" not in markdown
    assert " ± " not in markdown[: markdown.index("## How to read")]


def test_a_sweep_without_any_result_is_still_told(small):
    workdir = small(seeds=2, status=lambda run: {"state": "failed", "message": "no memory"})
    assert run(f"--workdir={workdir}") == 0
    markdown = (workdir / "report" / "report.md").read_text()
    assert "CARVE and GDN-2 have **no seed that both finished**" in markdown
    assert markdown.count("`no memory`") == 4
    assert row(markdown, "CARVE")[2:4] == ["–", "none"]


def test_it_reads_what_a_sweep_writes(tmp_path):
    plan = make_plan(cli.load_config(str(ROOT / "configs" / "sweeps" / "tiny.py"), []), [])
    facts = {"commit": COMMIT, "uncommitted_changes": False, "started": "", "versions": {}}
    store = Store(tmp_path)
    store.claim(plan, facts | {"devices": ["cpu"]}, "a command", other_commit=False)
    store.set_status(plan.runs[1], Status("failed", attempts=2, message="why", jobs=2))
    sweep = read_sweep(tmp_path)
    assert list(sweep.variants.items()) == [("gdn2", "GDN-2"), ("carve", "CARVE")]
    assert [metric.name for metric in sweep.tasks[0].metrics] == ["eval_accuracy", "eval_loss"]
    assert [run.parameters for run in sweep.runs] == [run.parameters for run in plan.runs]
    found = sweep.runs[1]
    assert (found.state, found.message, found.attempts, found.jobs) == ("failed", "why", 2, 2)
    assert sweep.commits == {COMMIT}


def test_runs_of_another_commit_are_refused_unless_allowed(small, capsys):
    workdir = small(seeds=2, status=lambda r: {"commit": OTHER} if r == "text.carve.s1" else {})
    said = mistake(capsys, f"--workdir={workdir}")
    assert said.startswith(
        "error: the run text.carve.s1 was trained by commit 5eed0000 and the swe"
    )
    assert "--allow_other_commit" in said
    assert run(f"--workdir={workdir}", "--allow_other_commit") == 0
    markdown = (workdir / "report" / "report.md").read_text()
    assert "Commit: `5eed000000` and `c0ffee0000`" in markdown
    assert "**The runs come from different code**" in markdown


def test_a_missing_metric_is_one_sentence(small, capsys):
    said = mistake(capsys, f"--workdir={small(tasks={'text': [BITS, ACCURACY]})}")
    assert said.startswith(
        "error: the run text.gdn2.s0 has no metric 'eval_accuracy' in its metrics.jsonl, which has "
        "eval_bits_per_byte, step, "
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--alpha=5"], "--alpha=5.0: give a probability"),
        (["--min_difference=eval_bits=0.1"], "no metric 'eval_bits'; did you mean 'eval_bits_per_"),
        (["--min_difference=eval_bits_per_byte=-1"], "give a number above 0"),
        (["--theory=/nowhere"], "--theory=/nowhere has no theory.json"),
        (["--workdr=x"], "unknown flag --workdr; did you mean 'workdir'?"),
        (["--workdir=/nowhere"], "--workdir=/nowhere has no sweep.json: give a directory that"),
    ],
)
def test_mistakes_are_one_sentence(small, capsys, flags, said):
    assert said in mistake(capsys, f"--workdir={small(seeds=1)}", *flags)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"baseline": "gdn"}, "the baseline 'gdn' is none of the variants gdn2, carve"),
        ({"runs": None}, "cannot be read (runs is missing): restore it"),
        (None, "cannot be read"),
    ],
)
def test_a_broken_record_is_one_sentence(small, capsys, change, said):
    workdir = small(seeds=1)
    record = json.loads((workdir / "sweep.json").read_text())
    changed = {k: v for k, v in (record | (change or {})).items() if v is not None}
    (workdir / "sweep.json").write_text(json.dumps(changed) if change else "{")
    assert said in mistake(capsys, f"--workdir={workdir}")


def test_a_run_that_ended_without_a_number_does_not_count(tmp_path):
    workdir = write_sweep(
        tmp_path / "sweep",
        {"gdn2": "GDN-2", "carve": "CARVE"},
        lambda task, variant, seed: math.nan if (variant, seed) == ("carve", 1) else 2.0,
        seeds=3,
    )
    sweep = read_sweep(workdir)
    faults = {run.id: sweep.fault(run) for run in sweep.runs if sweep.fault(run)}
    assert faults == {
        "text.carve.s1": "it finished, but its held-out bits per byte is not a finite number"
    }
    (only,) = compare(sweep, alpha=0.05, smallest={})
    assert only.seeds == (0, 2)


def test_what_trained_runs_were_asked_is_told_and_kept(small):
    workdir = small()

    def ask(run_id, step, shift):
        path = workdir / "runs" / run_id / f"evaluation_{step}.json"
        told = Result({"gate_shift": Figure(shift, None, 4)}, {})
        Record(path, {"step": step}, False).add("content", {}, told)
        few = Result({"gate_shift": Figure(7.0, None, 2)}, {})
        Record(path, {"step": step}, False).add("content", {"limit": 2}, few)  # is not told
        return path

    def told():
        assert run(f"--workdir={workdir}") == 0
        report = (workdir / "report" / "report.md").read_text()
        return report[report.index("### Asked of the trained") : report.index("### Cost")]

    ask("text.gdn2.s0", 100, 9.0)  # of an earlier checkpoint
    ask("text.carve.s0", 200, 0.25)
    last = ask("text.carve.s1", 200, 0.75)
    section = told()
    assert "Asked with `--tasks=content`" in section
    assert row(section, "CARVE") == ["CARVE", "0.5 ± 0.35", "2"]
    assert "GDN-2" not in section
    kept, _ = read_results(workdir / "report" / "results.json")
    asked = {each.id: each.evaluations for each in kept.runs if each.evaluations}
    assert asked == {f"text.carve.s{i}": {"content": {"gate_shift": 0.25 + i / 2}} for i in (0, 1)}
    last.write_text(last.read_text().replace("0.75", "0.99"))  # no longer what was measured
    assert row(told(), "CARVE") == ["CARVE", "0.25", "1"]
