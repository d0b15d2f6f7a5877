"""The nine-minute command's tasks at tiny sizes on a CPU, its list of stages, and its command."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments import cli
from experiments.benchmarks import tune
from experiments.measuring.rule_calls import DIRECTIONS, LAYER
from experiments.measuring.timing import LeftOut
from experiments.rented_gpu import __main__ as command
from experiments.rented_gpu import correctness, stages, summary, tasks, worker
from experiments.rented_gpu.record import ROOT, Record
from experiments.rented_gpu.schedule import Schedule, Stage, Task
from experiments.rented_gpu.stages import Machine, make_stages
from experiments.rented_gpu.worker import Progress
from pallas_kernels import guard
from pallas_kernels.tiling import Tiles

TINY = [1, 64, 1, 16]
H100 = "NVIDIA H100 80GB HBM3"
FACTS = {
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "devices": [H100],
    "versions": {"jax": "0.11.2"},
    "device_bytes": None,
}


@pytest.fixture(autouse=True)
def selftest_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks switch it off for their process, which is this one here."""
    monkeypatch.setenv(guard.SWITCH, "off")


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress(tmp_path / "figures.json")


@pytest.fixture
def all_tasks(tmp_path: Path) -> list[Task]:
    made = make_stages(Machine(H100, 16, tmp_path / "tiles.json"))
    return [task for stage in made for task in stage.tasks]


def test_stages_are_in_the_order_that_is_promised(tmp_path: Path) -> None:
    made = make_stages(Machine(H100, 16, tmp_path / "tiles.json"))
    assert [stage.name for stage in made] == list(stages.STAGES)
    assert [stage.name for stage in made if stage.side_by_side] == ["compile"]
    names = {stage.name: [task.name for task in stage.tasks] for stage in made}
    assert names["correctness"] == ["correctness/self-test", "correctness/kernel tests"]
    timings = names["timings"]
    ours = [i for i, name in enumerate(timings) if name.startswith(("time/ours", "time/decode"))]
    peers = [i for i, name in enumerate(timings) if name.startswith(("time/jla", "time/fla"))]
    assert max(ours) < min(peers)
    assert {"time/jla gdn2", "time/jla kda", "time/jla gdn", "time/fla gdn2, forward"} <= {*timings}
    assert names["train steps"] == ["train/gdn2", "train/carve"]


def test_all_stages_but_the_last_fit_into_nine_minutes(tmp_path: Path) -> None:
    made = make_stages(Machine(H100, 16, tmp_path / "tiles.json"))
    assert sum(stage.most for stage in made[:-2]) <= 9 * 60 - command.RESERVE


def test_every_task_can_be_called_as_it_is_named(all_tasks: list[Task]) -> None:
    names = [task.name for task in all_tasks]
    assert len(names) == len(set(names))
    for task in all_tasks:
        module, function = task.call.split(":")
        assert module in (tasks.__name__, correctness.__name__)
        called = getattr(tasks if module == tasks.__name__ else correctness, function)
        given = json.loads(json.dumps(dict(task.arguments)))
        inspect.signature(called).bind(None, **given)
        assert task.least < task.most


def test_what_is_measured_was_compiled(all_tasks: list[Task]) -> None:
    names = {task.name for task in all_tasks}
    compiling = [task for task in all_tasks if task.name.startswith("compile/")]
    served = {name for task in compiling for name in task.serves}
    assert all(task.serves for task in compiling)
    assert served <= names
    assert {n for n in names if n.startswith(("time/", "train/", "profile/"))} <= served
    shares = [t for t in compiling if t.arguments.get("rule") == "gdn2" and "part" in t.arguments]
    assert sorted(t.arguments["part"] for t in shares) == sorted([*range(7), *range(7)])


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
    small = {"batches": [1], "heads": 1, "channels": 16, "backends": ["pallas"], "interpret": True}
    tasks.compile_decode(progress, {**small, "most_steps": 8})


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


def test_the_first_candidates_are_those_a_search_begins_with() -> None:
    part = tune.Part("bfloat16", 128, "carve")
    expected = tune.first_candidates(part, H100)
    tried: list[Tiles] = []
    tune.search(expected[0], tune.grid(part), lambda tiles: tried.append(tiles) or 1.0)
    assert tried == expected


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
    (root / "pytest.ini").write_text("[pytest]\nmarkers = gpu: one\n")


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


def fill(record: Record) -> None:
    """Results as the tasks leave them."""
    both = "forward and backward"
    timed = {
        f"time/ours {LAYER.label}": {
            "gdn2 pallas, forward": 2.0, "carve pallas, forward": 3.0, f"gdn2 pallas, {both}": 4.0,
        },
        "time/jla gdn2": {"jla gdn2, forward": 4.0},
        "time/fla gdn2, forward": {"fla gdn2, forward": 5.0},
    }  # fmt: skip
    for name, seconds in timed.items():
        figures = {"median_seconds": seconds, "peak_bytes": dict.fromkeys(seconds, 7)}
        record.keep(name, {**figures, "left_out": {}})
        record.end(name, "done", 1.0)
    record.end("time/jla kda", "failed", 1.0, "ValueError: no")
    step = {
        "median_seconds": 1.0, "peak_bytes": 10, "rows": 4, "tokens_per_second": 4.0,
        "finite": True, "left_out": {},
    }  # fmt: skip
    for mixer in ("gdn2", "carve"):
        record.keep(f"train/{mixer}", step)
        record.end(f"train/{mixer}", "done", 1.0)
    kernels = {"score": {"seconds": 0.003, "launches": 1.0}}
    record.keep("profile/ours", {"gdn2 pallas, forward": kernels})


def test_the_summary_sets_processes_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(tmp_path, FACTS)
    fill(record)
    figures = summary.collect(record)
    part = figures["shapes"][LAYER.label]
    assert part["ratios"]["jla gdn2 / gdn2 pallas, forward"] == 2.0
    assert part["ratios"]["fla gdn2 / gdn2 pallas, forward"] == 2.5
    assert part["left_out"]["jla kda"] == "ValueError: no"
    assert part["roofline_share"] == {}  # the machine's rates were not measured
    assert figures["train_step"]["ratio"] == 1.0
    met = {target["what"]: target["met"] for target in figures["targets"]}
    assert met["fla gdn2 / gdn2, forward"] is True
    assert met["carve / gdn2, forward"] is False
    rates = {"flop_per_second": 1e15, "bytes_per_second": 3e12}
    record.keep("time/decode", {"ceilings": rates})
    assert summary.collect(record)["shapes"][LAYER.label]["roofline_share"]
    summary.show(record, figures, {"tiles/a": "left out: 3 s were left, and it needs 20"})
    printed = capsys.readouterr().out
    assert "score" in printed
    assert "missing, for another run: 1" in printed


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A GPU machine whose tasks end at once; the names of what ran."""
    ran: list[str] = []
    monkeypatch.setattr(command, "find_machine", lambda *_: dict(FACTS))

    def run(self: Schedule, given: tuple[Stage, ...]) -> None:
        ran.extend(stage.name for stage in given)
        fill(self._record)

    monkeypatch.setattr(Schedule, "run", run)
    handler = command.signal.getsignal(command.signal.SIGTERM)
    yield ran
    command.signal.signal(command.signal.SIGTERM, handler)


def test_the_command_writes_one_record(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rented_gpu", f"--output={tmp_path / 'out'}", "--minutes=9"]
    assert cli.call(command.main, arguments) == 0
    assert pretended == list(stages.STAGES)
    (path,) = (tmp_path / "out").glob("*.json")
    assert path.name == "0123456789ab_NVIDIA-H100-80GB-HBM3_jax-0.11.2.json"
    record = json.loads(path.read_text())
    assert record["summary"]["shapes"][LAYER.label]["median_seconds"]["gdn2 pallas, forward"] == 2.0
    assert record["missing"]["time/decode"] == "not begun: no time"
    assert "time/jla gdn2" not in record["missing"]
    assert record["runs"][0]["command"] == "python -m experiments.rented_gpu --minutes=9"
    assert f"written to {path}" in capsys.readouterr().out


def test_wrong_kernels_are_said_first_and_in_the_exit_code(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def run(self: Schedule, given: tuple[Stage, ...]) -> None:
        said = ["a table", "the kernels are off by 0.3"]
        self._record.keep("correctness/self-test", {"passed": False, "said": said})
        self._record.end("correctness/self-test", "done", 1.0)

    monkeypatch.setattr(Schedule, "run", run)
    arguments = ["rented_gpu", f"--output={tmp_path}", "--only=correctness"]
    assert cli.call(command.main, arguments) == 1
    printed = capsys.readouterr()
    assert "WRONG self-test: the kernels are off by 0.3" in printed.out
    assert printed.err.startswith(f"error: the kernels are wrong on this {H100}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only=timing"], "--only: unknown stage 'timing'"),
        (["--minute=9"], "unknown flag --minute"),
        (["--minutes=0"], "minutes"),
        (["--output=/proc/nowhere"], "--output=/proc/nowhere cannot be made"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], said: str, pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(command.main, ["rented_gpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not pretended


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU here")
def test_without_a_gpu_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CARVE_PALLAS", raising=False)
    handler = command.signal.getsignal(command.signal.SIGTERM)
    try:
        assert cli.call(command.main, ["rented_gpu", f"--output={tmp_path}"]) == 2
    finally:
        command.signal.signal(command.signal.SIGTERM, handler)
    error = capsys.readouterr().err
    assert error.startswith("error: rented_gpu needs an NVIDIA GPU, and JAX computes on 'cpu'")
    assert error.count("\n") == 1


def test_room_is_cores_as_far_as_memory_goes() -> None:
    assert command.slots(16, 128e9, 80e9) == 16
    assert command.slots(16, 16e9, 80e9) == 4
    assert command.slots(16, 128e9, 8e9) == 4
    assert command.slots(16, 1e9, None) == 1
