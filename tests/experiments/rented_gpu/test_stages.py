"""The nine-minute command's list of stages: their order, their time, and what they call."""

import inspect
import json
from pathlib import Path

import pytest

from experiments.benchmarks import tune
from experiments.rented_gpu import __main__ as command
from experiments.rented_gpu import correctness, stages, step_table, tasks
from experiments.rented_gpu.schedule import Task
from experiments.rented_gpu.stages import Machine, make_stages
from pallas_kernels.tiling import Tiles
from tests.experiments.rented_gpu.machine import H100


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
    first = stages.STAGES.index("tile search")
    assert stages.STAGES[first:] == ("tile search", "step table", "further")
    assert sum(stage.most for stage in made[:first]) <= 9 * 60 - command.RESERVE


def test_what_the_first_nine_minutes_compile_is_not_held_up_by_the_table(tmp_path: Path) -> None:
    compile_stage = make_stages(Machine(H100, 16, tmp_path / "tiles.json"))[0]
    later = {step.task for step in step_table.further()}
    of_table = [task for task in compile_stage.tasks if later & {*task.serves}]
    assert {name for task in of_table for name in task.serves} == later
    assert all(task.spare for task in of_table)
    of_tiles = [t for t in compile_stage.tasks if t.serves[0].startswith("tiles/")]
    assert compile_stage.tasks.index(of_tiles[-1]) < compile_stage.tasks.index(of_table[0])


def test_the_table_goes_from_the_most_wanted_model_on(tmp_path: Path) -> None:
    made = {s.name: s for s in make_stages(Machine(H100, 16, tmp_path / "tiles.json"))}
    names = [task.name for task in made["step table"].tasks]
    assert names[:6] == [
        "train/gdn2, kept", "train/jla gdn2", "train/jla gdn2, kept", "train/fla gdn2",
        "train/fla gdn2, kept", "train/carve, kept",
    ]  # fmt: skip
    of = [name.removeprefix("train/").split(",")[0].split()[-1] for name in names]
    models = list(dict.fromkeys(of))
    assert models == ["gdn2", "carve", "gdn2_swa", "transformer", "kda", "gdn", "mamba2"]
    every = {*names, "train/gdn2", "train/carve"}
    assert every == {step.task for step in step_table.STEPS}
    absent = len(step_table.ABSENT)
    assert len(step_table.STEPS) == 2 * (3 * 7 - absent)  # models × projects, in two ways


def test_a_plan_holds_the_same_sizes_for_all_but_for_what_a_peer_has_otherwise() -> None:
    for step in step_table.STEPS:
        ours = step_table.Step(step.model, "", step.remat)
        differ = {
            key for key, value in step.plan["model"].items() if ours.plan["model"][key] != value
        }
        assert step.plan["model"].keys() == ours.plan["model"].keys()
        assert differ <= {"mlp_dim", "num_heads"} if step.project == "jla" else not differ
    assert step_table.Step("gdn2", "", "kept").plan["remat"] == "rule_and_dots"
    assert step_table.Step("gdn2", "fla", "kept").plan["remat"] == "none"


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


def test_the_first_candidates_are_those_a_search_begins_with() -> None:
    part = tune.Part("bfloat16", 128, "carve")
    expected = tune.first_candidates(part, H100)
    tried: list[Tiles] = []
    tune.search(expected[0], tune.grid(part), lambda tiles: tried.append(tiles) or 1.0)
    assert tried == expected
