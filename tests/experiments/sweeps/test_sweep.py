"""A sweep's plan, its refusals, and the command; how runs are run: test_runner.py."""

import functools
import json
import sys
from pathlib import Path

import pytest

from carve_jax.errors import UserError
from carve_jax.mixers import MIXERS
from configs.sweeps import family, gates, gdn2_vs_carve, parts, tiny
from experiments import cli, sweep
from experiments.sweeps.machine import compiled, make_slots
from experiments.sweeps.plan import expand, make_plan
from experiments.sweeps.runner import Runner
from experiments.sweeps.store import Store
from tests.experiments.sweeps.harness import fake_command, make_runs

ROOT = Path(__file__).parents[3]
TINY = str(ROOT / "configs" / "sweeps" / "tiny.py")
FILES = sorted((ROOT / "configs" / "sweeps").rglob("*.py"))
SWEEPS = [path for path in FILES if "def get_config(" in path.read_text(encoding="utf-8")]
FACTS = {
    "backend": "cpu", "devices": ["cpu", "cpu"], "commit": "a" * 40, "uncommitted_changes": False,
    "started": "2026-01-01", "versions": {},
}  # fmt: skip


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """The command with fake runs in a temporary directory: (exit code, stdout, stderr)."""
    facts = dict(FACTS)
    monkeypatch.setattr(sweep, "probe", lambda: facts)
    fake = functools.partial(Runner, command=fake_command, pause=0.02)
    monkeypatch.setattr(sweep, "Runner", fake)

    def call(*arguments, **changes):
        facts.update(changes)
        argv = ["sweep", f"--config={TINY}", f"--workdir={tmp_path}", "--set.steps=6", *arguments]
        return cli.call(sweep.main, argv), *capsys.readouterr()

    return call


def letters(*labels):
    return [parts.value(n, n.upper(), {f"model.{n[0]}": n}) for n in labels]


def two_axes(combine, first=("a1", "a2"), second=("b1", "b2")):
    axes = [parts.axis("first", *letters(*first)), parts.axis("second", *letters(*second))]
    return parts.sweep(
        "s", "?", baseline="a1_b1", tasks={}, axes=axes, combine=combine, extra=letters("c1")
    )


def test_axes_combine_by_product_or_in_step():
    product = expand(two_axes("product"))
    assert [v.name for v in product] == ["a1_b1", "a1_b2", "a2_b1", "a2_b2", "c1"]
    assert product[1].title == "A1, B2"
    assert product[1].labels == {"first": "a1", "second": "b2"}
    assert product[1].overrides == {"model.a": "a1", "model.b": "b2"}
    assert [v.name for v in expand(two_axes("zip"))] == ["a1_b1", "a2_b2", "c1"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (("zip", ("a1",)), "need as many values each, but first has 1, second has 2"),
        (("sum",), "combine is 'sum': give 'product' or 'zip'"),
        (("product", ("a1",), ("a2",)), "two axes of the sweep set model.a: let one of them"),
        (("zip", ("a 1",), ("b",)), "the variant 'a 1_b' names files"),
        (("product", ("a1", "a1")), "two variants are called 'a1_b1'"),
    ],
)
def test_axes_that_do_not_fit_are_one_sentence(made, said):
    with pytest.raises(UserError, match=said):
        expand(two_axes(*made))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"baseline": "gnd2"}, r"the sweep's baseline 'gnd2' is no variant; did you mean 'gdn2'\?"),
        ({"seeds": (0, 0)}, r"the sweep's seeds are \(0, 0\): give different whole numbers"),
        ({"extra": [parts.mixer("gnd", "?")]}, "recall.gnd.* could not be trained.*mean 'gdn'"),
        (
            {"extra": [parts.value("x", "?", {"model.gate": 1})]},
            "recall.x sets model.gate=1: config.model has no field 'gate'",
        ),
        ({"extra": [parts.value("x", "?", {"steps": 41})]}, "same tokens, but .* 20,480 to 20,992"),
        (
            {"matched": {"tokens": True, "parameters": ("c*",), "within": -0.01}},
            r"equal within -1.0%, but those of recall go from 2,729 to 2,729 \(0.0%\)",
        ),
    ],
)
def test_a_sweep_that_is_wrong_is_refused_before_it_runs(changes, said):
    config = tiny.get_config()
    config.update(changes)
    with pytest.raises(UserError, match=said):
        make_plan(config, [])


def test_parameters_are_made_equal_by_the_mlp():
    config = tiny.get_config()
    config.tasks.recall.config.model.update({"mlp_dim": 64, "num_heads": 2})
    config.matched.update({"parameters": ("carve",)})
    plan = make_plan(config, ["--config.steps=6"])
    sizes = {run.variant: run for run in plan.runs}
    # One unit of the MLP's width has 3 · 16 parameters.
    assert abs(sizes["carve"].parameters - sizes["gdn2"].parameters) <= 24
    assert sizes["carve"].overrides["model.mlp_dim"] == sizes["carve"].config.model.mlp_dim > 64
    assert plan.matched.startswith(
        "associative recall: 3,072 tokens per run, parameters of CARVE and GDN-2 equal within 0."
    )
    assert [run.id for run in plan.runs] == [
        f"recall.{variant}.s{seed}" for seed in (0, 1) for variant in ("gdn2", "carve")
    ]
    assert {run.config.seed for run in plan.runs} == {0, 1}


def test_every_file_is_a_sweep_but_what_sweeps_are_made_of():
    others = {path.name for path in FILES if path not in SWEEPS}
    assert others == {"__init__.py", "parts.py"}


def test_sweeps_hold_what_they_promise():
    assert family.MIXERS.keys() == MIXERS.keys()
    assert len(gdn2_vs_carve.get_config().seeds) >= 5
    names = {variant.name for variant in expand(gates.get_config())}
    assert {"gdn2", "content", "write_scalar", "carve", "erase_scalar", "decay_scalar"} <= names


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_at_full_scale_is_accepted(path, monkeypatch):
    # Counting a model's parameters traces it; here only the fields are checked.
    monkeypatch.setattr("experiments.sweeps.plan.parameters", lambda model: 10**6 + model.mlp_dim)
    config = cli.load_config(str(path), [])
    assert config.name == path.stem
    make_plan(config, [])
    if "text" in config.tasks:
        plan = make_plan(
            config,
            ["--config.model.layers=20"],
            cli.load_config(str(ROOT / "configs" / "carve_1b3.py"), []),
        )
        assert {run.config.model.d_model for run in plan.runs} == {2304}


def test_the_command_runs_all_and_then_nothing(command, tmp_path):
    code, out, err = command()
    assert (code, err) == (0, "")
    assert "4 of 4 runs are done" in out
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["baseline"] == "gdn2"
    assert record["commit"] == "a" * 40
    assert record["variants"]["carve"]["labels"] == {"mixer": "carve"}
    assert record["tasks"]["recall"]["metrics"][0] == parts.ACCURACY
    run = record["runs"][1]
    assert (run["id"], run["variant"], run["seed"]) == ("recall.carve.s0", "carve", 0)
    assert run["overrides"] == {"model.pattern": ["carve"], "seed": 0}
    assert run["tokens"] == 6 * 32 * 16
    config = json.loads((tmp_path / "runs" / run["id"] / "config.json").read_text())
    assert (config["steps"], config["model"]["pattern"]) == (6, ["carve"])

    code, out, _ = command("--report")
    assert code == 0
    assert "4 of 4 runs came to their end before" in out
    assert "no difference" in (tmp_path / "report" / "report.md").read_text().lower()
    starts = [(tmp_path / "runs" / r["id"] / "starts").read_text() for r in record["runs"]]
    assert [text.count("\n") for text in starts] == [1] * 4
    code, out, _ = command("--dry_run")
    assert "0.0 minutes are left (from the 4 runs that are done)" in out


def test_another_sweep_or_commit_is_refused(command, tmp_path):
    assert command("--only=recall.gdn2.s0")[0] == 0
    where = f"error: {tmp_path} belongs to a sweep of other runs: "
    for argument, said in (
        ("--set.steps=7", "of the task recall, steps is 6 there and 7 here"),
        ("--config.seeds=0,2", "recall.carve.s1 and 1 more are there alone and recall.carve.s2"),
        ("--config.baseline=carve", "the baseline is gdn2 there and carve here"),
    ):
        code, _, err = command(argument)
        assert code == 2
        assert err.startswith(where + said)
        assert len(err.splitlines()) == 1
    code, _, err = command(commit="b" * 40)
    assert code == 2
    assert f"commit {'a' * 10} and this is {'b' * 10}" in err
    assert "--allow_other_commit" in err
    code, _, _ = command("--allow_other_commit", "--only=recall.carve.s0", commit="b" * 40)
    assert code == 0
    status = json.loads((tmp_path / "runs" / "recall.carve.s0.status.json").read_text())
    assert status["commit"] == "b" * 40
    (tmp_path / "sweep.json").write_text("{")
    assert "sweep.json cannot be read" in command()[2]


def test_array_jobs_take_one_run_each(command, tmp_path):
    assert command("--count") == (0, "4\n", "")
    code, out, _ = command("--index=2")
    assert code == 0
    assert "1 of 1 runs are done" in out
    done = [path.parent.name for path in (tmp_path / "runs").glob("*/metrics.jsonl")]
    assert done == ["recall.gdn2.s1"]
    assert "error: --index=4: there are 4 runs, counted from 0" in command("--index=4")[2]
    assert "error: --only=x: no run is called so" in command("--only=x")[2]
    assert "error: unknown flag --indx" in command("--indx=1")[2]


def test_a_dry_run_lists_and_starts_nothing(command, tmp_path):
    code, out, _ = command("--dry_run", "--jobs=2")
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    first = out.splitlines()[1].split()
    assert first[:3] == ["recall.gdn2.s0", "2,729", "3,072"]
    assert "4 runs, 2 at once" in out
    assert "a rough guess" in out


def test_a_failed_run_is_told_at_the_end(command, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_RUN_FAILS", "recall.carve.s1")
    with pytest.raises(SystemExit) as raised:
        command()
    assert raised.value.code == 1
    out = capsys.readouterr().out
    assert "3 of 4 runs are done" in out
    assert "recall.carve.s1: failed, error: something broke" in out


def test_runs_that_share_a_gpu_share_its_memory(monkeypatch, tmp_path):
    plan = make_plan(tiny.get_config(), [])
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    one = FACTS | {"backend": "gpu", "devices": ["NVIDIA H100"]}
    assert make_slots(plan, one, None) == [{"CUDA_VISIBLE_DEVICES": "3"}]
    quarter = {"CUDA_VISIBLE_DEVICES": "3", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.225"}
    assert make_slots(plan, one, 4) == [quarter] * 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
    slots = make_slots(plan, one | {"devices": ["NVIDIA H100"] * 2}, 3)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1", "0"]
    assert {slot["XLA_PYTHON_CLIENT_MEM_FRACTION"] for slot in slots} == {"0.300"}

    # What a child is given, and that the runs share one cache of what they compile.
    given = "import os, json; print(json.dumps(dict(os.environ)))"
    (tmp_path / "runs").mkdir()
    with compiled() as cache:
        runner = Runner(
            Store(tmp_path),
            [cache | quarter] * 2,
            commit=None,
            command=lambda store, run: [sys.executable, "-c", given],
            say=lambda line: None,
            pause=0.02,
        )
        runner.run_all(make_runs(2))
    logs = [path.read_text().splitlines() for path in sorted((tmp_path / "runs").glob("*.log"))]
    found = [json.loads(lines[-1]) for lines in logs]
    assert [child["XLA_PYTHON_CLIENT_MEM_FRACTION"] for child in found] == ["0.225"] * 2
    assert {child["CUDA_VISIBLE_DEVICES"] for child in found} == {"3"}
    assert {child["JAX_COMPILATION_CACHE_DIR"] for child in found} == {
        cache["JAX_COMPILATION_CACHE_DIR"]
    }


def test_slots_are_the_machine_s(monkeypatch):
    plan = make_plan(tiny.get_config(), [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = FACTS | {"backend": "gpu", "devices": ["NVIDIA H100"] * 4}
    assert make_slots(plan, gpus, None) == [{"CUDA_VISIBLE_DEVICES": str(n)} for n in range(4)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    wide = make_plan(tiny.get_config(), ["--config.mesh.data=2"])
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in make_slots(wide, gpus, None)] == ["4,5", "6,7"]
    with pytest.raises(UserError, match="takes 2 GPUs and this machine has 4: room for 2 at once"):
        make_slots(wide, gpus, 3)
    assert make_slots(plan, FACTS, 1) == [{}]
    (one, two) = make_slots(plan, FACTS, 2)
    assert "multi_thread_eigen=false" in one["XLA_FLAGS"] == two["XLA_FLAGS"]


@pytest.mark.slow  # .ci/run trains the same sweep
def test_real_training_from_a_run_s_stored_config(tmp_path):
    plan = make_plan(tiny.get_config(), ["--config.steps=2", "--config.eval_every=2"])
    store, run, said = Store(tmp_path), plan.runs[0], []
    store.claim(plan, FACTS, "test", other_commit=False)
    with compiled() as cache:
        Runner(store, [cache], commit=None, say=said.append).run_all([run])
    assert store.is_done(run), said
    assert {"eval_accuracy", "eval_loss"} <= store.last_figures(run).keys()
    facts = json.loads((store.directory(run) / "provenance.json").read_text())
    assert facts["device_peak_bytes"] is store.status(run).device_peak_bytes
    assert facts["parameters"]["total"] == run.parameters
