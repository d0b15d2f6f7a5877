"""The list of stages, in the order in which they run.

    compile        everything that compiles, side by side on all cores, nothing on the card
    correctness    the self-test, then every shipped tile and dtype
    timings        ours, then each peer, alone on the card
    train steps    of GDN-2 and of CARVE, one after the other
    kernel times   by the profiler
    tile search    for the official layer's kind of call
    step table     1.3B steps of seven models and of the peers, beside those of `train steps`
    further        plain XLA, more rows, other shapes and tiles

`most` of a stage is what it may cost, in seconds, so that those after it get their turn: nine
minutes for all but the last three. `least` and `most` of a task are what it needs and may cost.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks import tune
from experiments.benchmarks.gpu import FLA_RULES, OURS, SHAPES
from experiments.measuring.rule_calls import DIRECTIONS, LAYER, RULES, Shape
from experiments.peers.jla import RULES as JLA_RULES
from experiments.rented_gpu import step_table
from experiments.rented_gpu.schedule import Stage, Task

STAGES = (
    "compile", "correctness", "timings", "train steps", "kernel times", "tile search",
    "step table", "further",
)  # fmt: skip
TASKS = "experiments.rented_gpu.tasks"
CORRECTNESS = "experiments.rented_gpu.correctness"
GPU_TESTS = (
    "tests/kernels/test_gpu.py", "tests/kernels/test_step.py", "tests/ops/test_attention.py"
)  # fmt: skip
KERNELS = tuple(name for name, mine in OURS.items() if mine.implementation == "pallas")
PLAIN = tuple(name for name, mine in OURS.items() if mine.implementation == "chunked")
PROFILED = ("gdn2 pallas", "carve pallas")
FLA_SHARES = 7
FLA_LENGTH = 512  # a tuning variant does not depend on the length; at this one it needs little room
FIRST_TILES = tuple(p for p in tune.PARTS if (p.dtype, p.width) == ("bfloat16", 128))


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the stages depend on.

    Attributes:
      card: its name, which chooses tiles.
      slots: processes that fit side by side.
      table: where the tile search writes.
    """

    card: str
    slots: int
    table: Path


def make_stages(machine: Machine) -> tuple[Stage, ...]:
    """All stages, in the order of STAGES."""
    stages = (
        Stage("compile", (*_compile(machine), *_spare(machine)), most=120, side_by_side=True),
        Stage("correctness", _correctness(machine), most=95),
        Stage("timings", _timings(), most=170),
        Stage("train steps", _train_steps(), most=100),
        Stage("kernel times", (_profile("ours", PROFILED),), most=40),
        Stage("tile search", tuple(_search(part, machine) for part in FIRST_TILES)),
        Stage("step table", tuple(_step(step) for step in step_table.further())),
        Stage("further", tuple(_further(machine))),
    )
    assert tuple(stage.name for stage in stages) == STAGES
    return stages


def _task(name: str, function: str, arguments: Mapping[str, Any], **limits: Any) -> Task:
    return Task(name, f"{TASKS}:{function}", arguments, **limits)


def _compile(machine: Machine) -> Iterator[Task]:
    """What the first stages need, the longest and the most important first."""
    for mixer in RULES:
        yield _compile_for(f"train/{mixer}", "compile_training", {"mixer": mixer}, most=140)
    for name in KERNELS:
        yield _compile_rule(LAYER, name)
    yield from _compile_fla("gdn2", DIRECTIONS[0], machine)
    for rule in JLA_RULES:
        yield _compile_for(f"time/jla {rule}", "compile_jla", {"shape": LAYER, "rule": rule})
    yield from _compile_fla("gdn2", DIRECTIONS[1], machine)
    yield _compile_for("time/decode", "compile_decode", {})


def _spare(machine: Machine) -> Iterator[Task]:
    """What the last stages would use, on cores that are idle meanwhile."""
    for part in FIRST_TILES:
        start, *others = map(dataclasses.asdict, tune.first_candidates(part, machine.card))
        candidates: dict[str, Any] = {"chunked": None, "as shipped": start}
        for tiles in others:
            candidates[" ".join(f"{k}={v}" for k, v in tiles.items() if v != start[k])] = tiles
        for words, tiles in candidates.items():
            arguments = {"part": part, "tiles": tiles}
            serves = f"tiles/{part.label}"
            yield _compile_for(serves, "compile_tiles", arguments, words, spare=True)
    for step in step_table.further():
        for task in _compile_step(step, machine):
            yield dataclasses.replace(task, spare=True)
    for name, arguments in _more_rows().items():
        yield _compile_for(name, "compile_training", arguments, spare=True)
    for shape in SHAPES:
        for name in PLAIN if shape == LAYER else KERNELS:
            yield dataclasses.replace(_compile_rule(shape, name), spare=True)
    for way in DIRECTIONS:
        for task in _compile_fla("kda", way, machine):
            yield dataclasses.replace(task, spare=True)


def _compile_for(
    name: str, function: str, arguments: Mapping[str, Any], words: str = "", **limits: Any
) -> Task:
    """What compiles for the task of that name; `words` tell several of them apart."""
    own = f"compile/{name}{words and ': ' + words}"
    return _task(own, function, arguments, **{"most": 110, "serves": (name,), **limits})


def _compile_rule(shape: Shape, name: str) -> Task:
    timing = _ours_name(shape, name)
    profile = "profile/ours" if name in PROFILED else "profile/others"
    profiled = (profile,) if shape == LAYER and name in KERNELS else ()
    arguments = {"shape": shape, "name": name}
    return _compile_for(timing, "compile_rule", arguments, name, serves=(timing, *profiled))


def _compile_fla(rule: str, way: str, machine: Machine) -> Iterator[Task]:
    shares, shape = min(FLA_SHARES, machine.slots), LAYER._replace(length=FLA_LENGTH)
    what = {"shape": shape, "rule": rule, "backward": way != "forward", "of": shares}
    for part in range(shares):
        words = f"{part + 1} of {shares}"
        yield _compile_for(f"time/fla {rule}, {way}", "compile_fla", {**what, "part": part}, words)


def _correctness(machine: Machine) -> tuple[Task, ...]:
    tests = {"paths": GPU_TESTS, "processes": machine.slots}
    return (
        Task("correctness/self-test", f"{CORRECTNESS}:selftest", most=30),
        Task("correctness/kernel tests", f"{CORRECTNESS}:kernel_tests", tests, least=20, most=70),
    )


def _timings() -> tuple[Task, ...]:
    ours = (
        _time_ours(LAYER, KERNELS, most=90),
        _task("time/decode", "time_decode", {}, most=45),
    )
    jla = (
        _task(f"time/jla {rule}", "time_jla", {"shape": LAYER, "rule": rule}, most=45)
        for rule in JLA_RULES
    )
    return (*ours, *jla, *(_time_fla("gdn2", way) for way in DIRECTIONS))


def _time_ours(shape: Shape, names: tuple[str, ...], most: float) -> Task:
    arguments = {"shape": shape, "names": names}
    return _task(_ours_name(shape, names[0]), "time_ours", arguments, most=most)


def _ours_name(shape: Shape, name: str) -> str:
    return f"time/{'chunked' if name in PLAIN else 'ours'} {shape.label}"


def _time_fla(rule: str, way: str) -> Task:
    arguments = {"shape": LAYER, "rule": rule, "way": way}
    most = 45 if way == "forward" else 75
    return _task(f"time/fla {rule}, {way}", "time_fla", arguments, most=most)


def _train_steps() -> tuple[Task, ...]:
    return tuple(
        _task(f"train/{mixer}", "train_step", {"mixer": mixer}, least=20, most=60)
        for mixer in RULES
    )


def _step(step: step_table.Step) -> Task:
    arguments: dict[str, Any] = {"plan": step.plan}
    if not step.project:
        arguments["mixer"] = step.model
    function = f"{step.project}{step.project and '_'}train_step"
    most = 240 if step.project == "fla" else 150
    return _task(step.task, function, arguments, least=20, most=most)


def _compile_step(step: step_table.Step, machine: Machine) -> Iterator[Task]:
    """What compiles for a step; flash-linear-attention's two of a model compile at once."""
    if step.project == "fla":
        if step.remat == "full":
            yield from _compile_fla_step(step, machine)
    elif step.project == "jla":
        yield _compile_for(step.task, "compile_jla_step", {"plan": step.plan}, most=140)
    else:
        arguments = {"mixer": step.model, "plan": step.plan}
        yield _compile_for(step.task, "compile_training", arguments, most=140)


def _compile_fla_step(step: step_table.Step, machine: Machine) -> Iterator[Task]:
    shares, serves = min(FLA_SHARES, machine.slots), (step.task, step._replace(remat="kept").task)
    for part in range(shares):
        arguments = {"model": step.plan["model"], "length": FLA_LENGTH, "part": part, "of": shares}
        words = f"{part + 1} of {shares}"
        yield _compile_for(step.task, "compile_fla_step", arguments, words, serves=serves)


def _more_rows() -> dict[str, dict[str, Any]]:
    """The step with 8 rows: arguments by name."""
    return {f"train/{mixer}, 8 rows": {"mixer": mixer, "plan": {"rows": (8,)}} for mixer in RULES}


def _profile(what: str, names: tuple[str, ...]) -> Task:
    return _task(f"profile/{what}", "profile_ours", {"shape": LAYER, "names": names}, most=60)


def _search(part: tune.Part, machine: Machine) -> Task:
    arguments = {"part": part, "table": str(machine.table)}
    return _task(f"tiles/{part.label}", "search_tiles", arguments, least=20, most=90)


def _further(machine: Machine) -> Iterator[Task]:
    yield _time_ours(LAYER, PLAIN, most=60)
    for name, arguments in _more_rows().items():
        yield _task(name, "train_step", arguments, least=20, most=150)
    yield _profile("others", tuple(name for name in KERNELS if name not in PROFILED))
    for shape in SHAPES[1:]:
        yield _time_ours(shape, KERNELS, most=75)
    for rule in FLA_RULES:
        if rule != "gdn2":
            yield from (_time_fla(rule, way) for way in DIRECTIONS)
    for part in tune.PARTS:
        if part not in FIRST_TILES:
            yield _search(part, machine)
