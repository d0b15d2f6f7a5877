"""The nine-minute command's tasks at tiny sizes on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import tune
from experiments.measuring.rule_calls import DIRECTIONS
from experiments.measuring.timing import LeftOut
from experiments.measuring.train_steps import Cost, Training
from experiments.peers import Fla, Jla
from experiments.rented_gpu import __main__ as command
from experiments.rented_gpu import correctness, tasks, worker
from experiments.rented_gpu.record import ROOT, Record
from experiments.rented_gpu.schedule import Schedule, Stage, Task
from experiments.rented_gpu.worker import Progress
from pallas_kernels import guard
from pallas_kernels.tiling import Tiles
from tests.experiments.rented_gpu.machine import FACTS

TINY = [1, 64, 1, 16]


@pytest.fixture(autouse=True)
def selftest_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks switch it off for their process, which is this one here."""
    monkeypatch.setenv(guard.SWITCH, "off")


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress(tmp_path / "figures.json")


def worker_variables(cache: Path) -> dict[str, str]:
    return {**command.environment(cache), "JAX_PLATFORMS": "cpu", "CARVE_PALLAS": "interpret"}


def programs(cache: Path) -> set[str]:
    """What is in the cache, but for the times of access."""
    return {path.name for path in cache.iterdir() if path.name.endswith("-cache")}


@pytest.mark.slow
def test_what_is_compiled_from_shapes_is_found_by_what_measures(tmp_path: Path) -> None:
    """Through the processes themselves: side by side, one cache, no arrays."""
    cache = tmp_path / "cache"
    record = Record(tmp_path, FACTS)
    record.use_cache(cache)
    names = ["gdn2 pallas", "carve pallas"]
    compiling = [
        Task(f"compile/{n}", f"{tasks.__name__}:compile_rule",
             {"shape": TINY, "name": n, "dtype": "float32"}, serves=("time/ours",), most=400)
        for n in names
    ]  # fmt: skip
    times = {"shape": TINY, "names": names, "dtype": "float32", "repeats": 1, "turn_seconds": 0.0}
    timing = Task("time/ours", f"{tasks.__name__}:time_ours", times, most=400)
    said: list[str] = []

    def run(stage: Stage) -> None:
        Schedule(
            record, float("inf"), slots=2, folder=tmp_path, environment=worker_variables(cache),
            log=said.append, say=said.append,
        ).run((stage,))  # fmt: skip

    run(Stage("compile", tuple(compiling), side_by_side=True))
    assert all(record.done(task.name) for task in compiling), said
    figures = record.figures("compile/carve pallas")
    assert figures["forward and backward"]["peak_bytes"] > figures["forward"]["peak_bytes"] > 0
    compiled = programs(cache)
    rules = {name for name in compiled if name.startswith(("jit_run", "jit__lambda"))}
    assert len(rules) == 4  # two rules in two directions
    run(Stage("time", (timing,)))
    assert record.done("time/ours"), said
    timed = record.figures("time/ours")["median_seconds"]
    assert set(timed) == {f"{name}, {way}" for name in names for way in DIRECTIONS}
    new = programs(cache) - compiled
    assert not [n for n in new if n.startswith(("jit_run", "jit__lambda", "jit_rule_inputs"))]


MODEL = {
    "vocab_size": 32, "d_model": 16, "layers": 1, "mlp_dim": 16, "num_heads": 1, "key_dim": 16,
    "value_dim": 16,
}  # fmt: skip


@pytest.mark.slow
def test_a_train_step_and_decode_compile_from_shapes(progress: Progress) -> None:
    plan = {"model": MODEL, "length": 8, "rows": [2], "implementation": "recurrent"}
    with jax.transfer_guard("disallow"):
        figures = tasks.compile_training(progress, "gdn2", plan)
    assert figures["rows"] == 2
    measured = tasks.train_step(progress, "gdn2", plan, repeats=1)
    assert measured["peak_bytes"] == figures["peak_bytes"]
    assert measured["finite"]
    # Profiled as well, though each call uses up the state that the one before gave; a CPU has none.
    assert "the profiler saw no kernel" in measured["kernels"]["left_out"]
    small = {"batches": [1], "heads": 1, "channels": 16, "backends": ["pallas"], "interpret": True}
    tasks.compile_decode(progress, {**small, "most_steps": 8})


def tiny_training(*given: Any) -> Training:
    """A step of a state of one number; what is given ends with the rows."""
    rows = given[-1]

    class State(NamedTuple):
        healthy: jax.Array

    def step(state: State, batch: jax.Array) -> tuple[State, jax.Array]:
        return State(state.healthy & (batch.sum() > 0)), batch.sum()

    def init() -> State:
        return State(jnp.array(True))

    def make_batch() -> jax.Array:
        return jnp.ones((rows, 8))

    shapes = jax.eval_shape(init), jax.eval_shape(make_batch)
    compiled = jax.jit(step, donate_argnums=0).lower(*shapes).compile()
    return Training(compiled, jax.jit(init), make_batch, rows, Cost(10, 60.0), {})


def test_a_peer_s_step_in_jax_is_measured_as_ours_is(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def program(*given: Any) -> Training:
        asked.append(given)
        return tiny_training(*given)

    jla = Jla(lambda: None, "mosaic_gpu", {"jla": "0.1.0"})
    monkeypatch.setattr(tasks, "load_jla", lambda: jla)
    monkeypatch.setattr(tasks, "jla_program", program)
    plan = {"model": MODEL, "remat": "none", "rows": [2], "length": 8}
    compiled = tasks.compile_jla_step(progress, plan)
    figures = tasks.jla_train_step(progress, plan, repeats=1)
    assert asked == [(jla, MODEL, "none", 8, 2)] * 2
    assert compiled == {"rows": 2, "peak_bytes": figures["peak_bytes"]}
    assert figures["tokens_per_second"] == 2 * 8 / figures["median_seconds"]
    assert (figures["finite"], figures["parameters"]) == (True, 10)
    assert (figures["remat"], figures["model"]) == ("none", MODEL)
    assert figures["versions"] == {"jla": "0.1.0"}


def test_a_peer_s_step_in_torch_has_the_plan_s_sizes(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    fla = Fla(None, {}, {"torch": "fake"})
    monkeypatch.setattr(tasks, "load_fla", lambda: fla)
    monkeypatch.setattr(tasks, "measure_fla", lambda *given: {"given": list(given)})
    plan = {"model": MODEL, "remat": "full", "rows": [4, 2], "length": 8}
    figures = tasks.fla_train_step(progress, plan, repeats=3)
    assert figures["given"] == [fla, MODEL, "full", 8, (4, 2), 3]
    assert (figures["length"], figures["versions"]) == (8, {"torch": "fake"})


@pytest.mark.parametrize(
    ("task", "loader"), [("jla_train_step", "load_jla"), ("fla_train_step", "load_fla")]
)
def test_a_peer_that_is_not_here_is_left_out(
    task: str, loader: str, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, loader, lambda: "not installed")
    with pytest.raises(LeftOut, match="not installed"):
        getattr(tasks, task)(progress, {"model": MODEL})


@pytest.mark.slow
def test_a_step_that_fails_says_why_in_its_last_line(tmp_path: Path) -> None:
    record = Record(tmp_path, FACTS)
    said: list[str] = []
    plan = {"model": MODEL, "rows": [1], "length": 64, "implementation": "pallas"}
    task = Task(
        "train/gdn2", f"{tasks.__name__}:train_step", {"mixer": "gdn2", "plan": plan}, most=300
    )
    variables = {**worker_variables(tmp_path / "cache"), "CARVE_PALLAS": "gpu"}
    Schedule(
        record, float("inf"), slots=1, folder=tmp_path, environment=variables, log=said.append,
        say=said.append,
    ).run((Stage("train steps", (task,)),))  # fmt: skip
    assert record.tasks["train/gdn2"]["state"] == "failed"
    assert "NotImplementedError" in record.tasks["train/gdn2"]["why"], said


@pytest.mark.slow
def test_candidates_of_the_tile_search_compile(
    progress: Progress, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CARVE_PALLAS", "interpret")
    for name, value in (("BATCH", 1), ("LENGTH", 64), ("HEADS", 1)):
        monkeypatch.setattr(tune, name, value)
    part = ["float32", 16, "gdn2"]
    tasks.compile_tiles(progress, part, None)
    tasks.compile_tiles(progress, part, {"chunk": 16, "product": "f32", "inverse": "f32"})


def test_a_tile_search_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Tiles] = []

    class Trial:
        def __init__(self, *_: Any) -> None:
            pass

        def measure(self, tiles: Tiles) -> float | str:
            if len(measured) == 3:
                raise KeyboardInterrupt
            measured.append(tiles)
            return 1.0 / tiles.chunk if tiles.warps == 8 else "off by 1"

    monkeypatch.setattr(tune, "Trial", Trial)
    path, table = tmp_path / "figures.json", tmp_path / "tiles.json"
    part = ["bfloat16", 128, "gdn2"]
    with pytest.raises(KeyboardInterrupt):
        tasks.search_tiles(Progress(path), part, str(table))
    first, so_far = set(measured), json.loads(path.read_text())
    assert len(so_far["tried"]) == len(first) == 3
    measured.clear()
    monkeypatch.setattr(Trial, "measure", lambda self, t: measured.append(t) or 1.0 / t.chunk)
    figures = tasks.search_tiles(Progress(path), part, str(table))
    assert measured
    assert not first & set(measured)
    assert figures["tiles"]["chunk"] == 64
    device = jax.devices()[0].device_kind
    (row,) = [row for row in json.loads(table.read_text()) if row["device"] == device]
    assert row["tiles"]["chunk"] == 64


def write_tests(root: Path) -> None:
    (root / "test_fake.py").write_text(
        "import pytest\n"
        "@pytest.mark.gpu\n"
        "@pytest.mark.parametrize('n', [0, 1, 2])\n"
        "def test_number(n):\n"
        "    with open('ran', 'a') as ran: ran.write(str(n))\n"
        "    assert n != 1\n"
        "def test_other(): raise SystemExit\n"
    )
    (root / "pytest.ini").write_text("[pytest]\nmarkers = gpu: one\nfilterwarnings = error\n")


RUN_TESTS = """
import json, sys
from pathlib import Path
from experiments.rented_gpu import correctness
from experiments.rented_gpu.worker import Progress
correctness.ROOT = Path(sys.argv[1])
progress = Progress(Path(sys.argv[1]) / "figures.json")
progress.save(correctness.kernel_tests(progress, ["test_fake.py"], 2))
"""


@pytest.mark.slow
def test_kernel_tests_are_recorded_and_those_passed_not_run_again(tmp_path: Path) -> None:
    write_tests(tmp_path)
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", RUN_TESTS, str(tmp_path)], check=True, cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert (figures["passed"], figures["failed"]) == (2, 1)
        assert list(figures["failures"]) == ["test_fake.py::test_number[1]"]
    assert sorted((tmp_path / "ran").read_text()) == ["0", "1", "1", "2"]


def test_tests_that_are_not_here_are_left_out(progress: Progress) -> None:
    with pytest.raises(LeftOut, match=r"test_nothing\.py is not here"):
        correctness.kernel_tests(progress, ["tests/test_nothing.py"], 1)


@pytest.mark.parametrize(("code", "passed"), [(0, True), (1, False)])
def test_the_self_test_is_asked(
    progress: Progress, monkeypatch: pytest.MonkeyPatch, code: int, passed: bool
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        assert command[1:] == ["-m", "pallas_kernels.selftest", "--quick"]
        return subprocess.CompletedProcess(command, code, "a table\nthe end\n", "")

    monkeypatch.setattr(correctness.subprocess, "run", run)
    assert correctness.selftest(progress) == {"passed": passed, "said": ["a table", "the end"]}
    code = 2
    with pytest.raises(LeftOut, match="the end"):
        correctness.selftest(progress)


def test_a_worker_says_why_there_is_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.signal, "alarm", lambda seconds: None)
    monkeypatch.setattr(tasks, "load_jla", lambda: "jax-linear-attention cannot be imported")
    arguments = json.dumps({"shape": TINY, "rule": "gdn2"})
    figures = str(tmp_path / "figures.json")
    call = f"{tasks.__name__}:time_jla"
    assert worker.main(call, arguments, figures, "60") == worker.LEFT_OUT
    assert capsys.readouterr().out.endswith("jax-linear-attention cannot be imported\n")
    assert not Path(figures).exists()
