"""Files of a sweep's directory, and what a report reads besides."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.reporting import results, text, theory_record
from experiments.reporting.compare import compare
from experiments.reporting.solved import count_solved
from experiments.reporting.sweep import read_sweep
from experiments.reporting.tables import Findings
from experiments.sweeps.plan import Plan, PlannedRun, Variant
from experiments.sweeps.store import FILE_NAME, RUNS, Status, Store
from experiments.sweeps.tuning import FOLDER, Choice, Tuning, read_choice, write_choice
from tests.experiments.sweeps.made_up import BITS, truth_of, write_sweep
from tests.fuzz.damage import HANGS, kept
from tests.fuzz.kind import OTHER, REPAIRED, Kind, Say, SilentChange, any_value, same

FACTS = {
    "commit": "abc",
    "uncommitted_changes": False,
    "started": "today",
    "versions": {"jax": "0"},
    "devices": ["cpu"],
}
RUN = PlannedRun("text.v.s0", "text", "v", 0, {"seed": 0}, ConfigDict({"steps": 4}), 10, 4, 60)
PLAN = Plan(
    "tiny", "Why?", "v", "tokens", {"text": {"title": "t", "metrics": [BITS], "config": {"a": 1}}},
    (Variant("v", "V", {"gate": 1}, {"model.layers": 2}),), (RUN,),
)  # fmt: skip


def make_sweep(folder: Path, number: int) -> None:
    plan = PLAN._replace(runs=(RUN._replace(parameters=10 + number),))
    store = Store(folder)
    store.claim(plan, FACTS, "python -m experiments.sweep", other_commit=False)
    store.set_status(RUN, Status("done", 1, 0, "", 2.0 + number, 5, None, "abc", 1))
    store.directory(RUN).mkdir()
    lines = [{"step": n, "eval_loss": 1.0 / n + number} for n in range(1, 5)]
    figures = "".join(json.dumps(line) + "\n" for line in lines)
    (store.directory(RUN) / "metrics.jsonl").write_text(figures, "utf-8")
    (store.directory(RUN) / "provenance.json").write_text('{"device_peak_bytes": 7}', "utf-8")
    log = f"\n$ python\nstep 1\nerror: it is {number}\nlast\n"
    store.path(RUN, "log").write_text(log, "utf-8")
    store.path(RUN, "lock").write_text("", "utf-8")


def claim(folder: Path, say: Say) -> Any:
    """As the sweep that goes on."""
    Store(folder).claim(PLAN, FACTS, "python -m experiments.sweep", other_commit=False)
    return "the same sweep"


def status(folder: Path, say: Say) -> Any:
    return Store(folder).status(RUN), Store(folder).is_done(RUN)


def judge_status(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    found, _ = value
    path = folder / RUNS / f"{RUN.id}.status.json"
    if not path.exists():
        return REPAIRED  # as never started, so the run is looked at again
    there = json.loads(path.read_text("utf-8"))
    if any(not same(getattr(found, name), given) for name, given in there.items()):
        raise SilentChange("not what the file says")
    for name, kinds in {
        "state": str,
        "attempts": int,
        "message": str,
        "seconds": (int, float),
    }.items():
        if not isinstance(getattr(found, name), kinds):
            raise SilentChange(f"{name} of another type")
    return OTHER


def last_figures(folder: Path, say: Say) -> Any:
    """As the sweep asks whether a run took all its steps, and shows its figures."""
    store = Store(folder)
    figures = store.last_figures(RUN)
    shown = {k: None if v is None else f"{v:.4f}" for k, v in figures.items() if k[:4] == "eval"}
    return store.took_all_steps(RUN), figures.get("step", 0) + 0, shown


def judge_last(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    """A run is not done because of a damaged file; that it is not is right, and is seen to."""
    done, step, _ = value
    if not done:
        return REPAIRED
    if step != 4:
        raise SilentChange("done, but not at its last step")
    return OTHER


def last_line(folder: Path, say: Say) -> Any:
    return Store(folder).last_line(RUN)


def lock(folder: Path, say: Say) -> Any:
    file = Store(folder).lock(RUN)
    assert file is not None
    file.close()
    return "locked"


def device_peak(folder: Path, say: Say) -> Any:
    return Store(folder).device_peak_bytes(RUN)


def judge_peak(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    if value is not None and type(value) is not int:
        raise SilentChange("no number of bytes")
    return OTHER


def make_choice(folder: Path, number: int) -> None:
    tuning = Tuning("optimizer.peak_learning_rate", (0.1, 0.2), (7 + number,), 4)
    write_choice(folder, "text", "v", Choice(tuning, 0.2, ((1.5,), (None,))))


def choice(folder: Path, say: Say) -> Any:
    found = read_choice(folder, "text", "v")
    return found and (found, found.at_edge, found.means)


def judge_choice(folder: Path, value: Any, healthy: Any, said: list[str]) -> str:
    if value is None:
        return REPAIRED  # it is made again from the tuning's runs
    found, _, means = value
    if found.value not in found.tuning.grid or len(means) > len(found.tuning.grid):
        raise SilentChange("a choice that its grid does not have")
    return OTHER


def make_report(folder: Path, number: int) -> None:
    titles = {"gdn2": "GDN-2", "carve": "CARVE"}
    truth = truth_of({"gdn2": 0.0, "carve": -0.1 - number})
    write_sweep(folder, titles, truth, seeds=2)
    (folder / "theory").mkdir()
    (folder / "theory" / "theory.json").write_text(json.dumps(THEORY | {"date": str(number)}))
    (folder / "theory" / "solve.png").write_bytes(theory_record.PNG + bytes([number]))
    (folder / "secret.png").write_bytes(theory_record.PNG)


THEORY = {
    "commit": "abc",
    "date": "2026-11-25",
    "experiments": [
        {
            "name": "solve",
            "title": "One solve",
            "verdict": "holds",
            "claim": "c",
            "setup": "s",
            "fails_where": "",
            "numbers": [{"name": "error", "value": 0.5, "unit": "%"}],
            "figure": "solve.png",
        }
    ],
}


def make_results(folder: Path, number: int) -> None:
    make_report(folder, number)
    (folder / results.FILE_NAME).write_text(results.to_json(read_sweep(folder)), "utf-8")


def judge_again(folder: Path, say: Say) -> Any:
    """As a claim is judged."""
    sweep, note = results.read_results(folder / results.FILE_NAME)
    comparisons = compare(sweep, alpha=0.05, smallest={})
    rates = [(run.rate, run.last_step, run.curve(BITS["name"])) for run in sweep.runs]
    return note, [(each.variant, each.difference) for each in comparisons], rates


def write_report(folder: Path, say: Say) -> Any:
    """As experiments.report does, but for its pictures."""
    sweep = read_sweep(folder)
    comparisons = compare(sweep, alpha=0.05, smallest={})
    theory, where = theory_record.find_theory(None, folder)
    pngs = theory_record.theory_pictures(theory, where)
    shows = {task.name: {f"{task.name}_curves.png": ("curves", "c")} for task in sweep.tasks}
    solved = count_solved(sweep)
    written = text.write(Findings(sweep, comparisons, 0.05, solved, shows, "", theory))
    rates = [(run.rate, run.last_step, run.curve(BITS["name"])) for run in sweep.runs]
    return written, pngs, rates


_TAIL = "experiments.sweeps.store:_tail"
_STORE = "experiments.sweeps.store:Store"
_REPORT = "experiments.reporting.sweep:read_json"
_RUN = "runs/text.carve.s0"

KINDS = (
    Kind(
        "sweep.json",
        make_sweep,
        (FILE_NAME,),
        claim,
        ("experiments.sweeps.store:read_record", f"{_STORE}._read", f"{_STORE}._check"),
        json=True,
        examples=(kept("only", 0, "object"), kept("value", 9, "long text")),
    ),
    Kind(
        "status of a sweep's run",
        make_sweep,
        (f"{RUNS}/*.status.json",),
        status,
        ("experiments.sweeps.store:read_status",),
        judge_status,
        json=True,
        examples=(kept("value", 1, "-0.0"), kept("value", 5, "[]")),
    ),
    Kind(
        "figures of a sweep's run",
        make_sweep,
        (f"{RUNS}/*/metrics.jsonl",),
        last_figures,
        (_TAIL, f"{_STORE}.last_figures"),
        judge_last,
        json=True,
        examples=HANGS,
    ),
    Kind(
        "log of a sweep's run",
        make_sweep,
        (f"{RUNS}/*.log",),
        last_line,
        (_TAIL,),
        any_value,
        examples=HANGS,
    ),
    Kind(
        "lock of a sweep's run",
        make_sweep,
        (f"{RUNS}/*.lock",),
        lock,
        (f"{_STORE}.lock",),
        share=0.5,
    ),
    Kind(
        "memory of a sweep's run",
        make_sweep,
        (f"{RUNS}/*/provenance.json",),
        device_peak,
        (f"{_STORE}.device_peak_bytes",),
        judge_peak,
        json=True,
    ),
    Kind(
        "choice of a sweep's tuning",
        make_choice,
        (f"{FOLDER}/*.json",),
        choice,
        ("experiments.sweeps.tuning:read_choice",),
        judge_choice,
        json=True,
    ),
    Kind(
        "report: sweep.json",
        make_report,
        (FILE_NAME,),
        write_report,
        ("experiments.reporting.sweep:read_sweep",),
        any_value,
        json=True,
        examples=(kept("only", 0, "object"), kept("value", 12, "1")),
    ),
    Kind(
        "report: files of a run",
        make_report,
        (f"{_RUN}/*", f"{_RUN}.status.json"),
        write_report,
        (_REPORT, "experiments.reporting.sweep:_run", "carve_jax.training.reports.metrics:_read"),
        any_value,
        json=True,
    ),
    Kind(
        "report: results.json",
        make_results,
        (results.FILE_NAME,),
        judge_again,
        ("experiments.reporting.results:read_results", _REPORT),
        any_value,
        json=True,
    ),
    Kind(
        "report: theory.json",
        make_report,
        ("theory/theory.json",),
        write_report,
        ("experiments.reporting.theory_record:find_theory",),
        any_value,
        json=True,
        examples=(kept("value", 3, "[]"), kept("value", 4, "null")),
    ),
    Kind(
        "report: pictures",
        make_report,
        ("theory/*.png",),
        write_report,
        ("experiments.reporting.theory_record:theory_pictures",),
        any_value,
        share=0.3,
        examples=HANGS,
    ),
)
