"""Imports flow one way between the rooms, and each room's outside imports are those it may have."""

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

import carve_jax
from experiments.__main__ import NO_COMMANDS

ROOT = Path(__file__).resolve().parent.parent

# A file may import its own layer and those above it in this list; rooms of one layer, each other
# one way alone.
LAYERS = (
    (
        *("carve_jax/shapes.py", "carve_jax/errors.py", "carve_jax/versions.py"),
        *("carve_jax/ranges.py", "carve_jax/files"),
    ),
    ("carve_jax/data",),
    ("pallas_kernels",),
    ("carve_jax/ops",),
    ("carve_jax/sharding.py",),
    ("carve_jax/mixers",),
    ("carve_jax/config.py", "carve_jax/model.py", "carve_jax/placement.py", "configs"),
    ("carve_jax/decoding.py", "carve_jax/decoding_file.py", "carve_jax/generate.py"),
    ("carve_jax/accounting.py", "carve_jax/interop"),
    ("carve_jax/training",),
    ("carve_jax/evaluation",),
    ("experiments",),
    ("examples",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# Rooms that not all below them in the list may import.
IMPORTED_BY = {"carve_jax/data": ("carve_jax/training", "carve_jax/evaluation", "experiments")}
OUTSIDE = {"pallas_kernels": {"jax", "numpy"}, "configs": {"ml_collections"}}
# Files that nobody imports unless asked, and what they may import besides.
OUTSIDE_OF_FILE = {
    "configs/base.py": {"carve_jax"},
    "pallas_kernels/compiling/pip_triton.py": {"triton"},
    "pallas_kernels/decode/triton_step.py": {"triton", "jax_triton"},
}


def room_of(path: str) -> str | None:
    """The room that a file (relative to the root) lies in."""
    return next((r for r in LEVEL if path == r or path.startswith(r + "/")), None)


@functools.cache
def imported_modules(source: str) -> tuple[str, ...]:
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(found)


def file_of(module: str) -> str | None:
    """The file that an imported dotted name lies in, if it is one of ours."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        base = "/".join(parts[:end])
        for path in (base + ".py", base + "/__init__.py"):
            if (ROOT / path).exists():
                return path
    return None


def target(module: str) -> str | None:
    """The room that an imported dotted name lies in, if it is one of ours."""
    path = file_of(module)
    return None if path is None else room_of(path)


def files() -> list[str]:
    found = [
        p.relative_to(ROOT)
        for room in ("pallas_kernels", "carve_jax", "configs", "experiments", "examples")
        for p in (ROOT / room).rglob("*.py")
    ]
    return sorted(str(p) for p in found if str(p) != "carve_jax/__init__.py")


def wrong_arrow(room: str, other: str) -> bool:
    """Whether a file of `room` may not import one of `other`."""
    known = other == room or room in IMPORTED_BY.get(other, (room,))
    return LEVEL[other] > LEVEL[room] or not known


def rooms_imported() -> dict[str, set[str]]:
    """For each room, the others that its files import."""
    graph: dict[str, set[str]] = {room: set() for room in LEVEL}
    for path in files():
        room = room_of(path)
        assert room is not None, f"{path} lies in no room: give it a place in LAYERS"
        others = map(target, imported_modules((ROOT / path).read_text()))
        graph[room] |= {other for other in others if other not in (None, room)}
    return graph


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Rooms that import each other in a circle, first and last alike; [] if there is none."""
    done: set[str] = set()

    def search(room: str, way: list[str]) -> list[str]:
        if room in way:
            return [*way[way.index(room) :], room]
        if room in done:
            return []
        found = (search(other, [*way, room]) for other in sorted(graph[room]))
        first = next(filter(None, found), [])
        done.add(room)
        return first

    return next(filter(None, (search(room, []) for room in graph)), [])


@pytest.mark.parametrize("path", files())
def test_arrows(path: str) -> None:
    room = room_of(path)
    assert room is not None, f"{path} lies in no room: give it a place in LAYERS"
    for module in imported_modules((ROOT / path).read_text()):
        other = target(module)
        assert other is None or not wrong_arrow(room, other), f"{path} imports {module}"


def test_no_circles() -> None:
    found = circle(rooms_imported())
    assert not found, f"rooms import each other in a circle: {' -> '.join(found)}"


@pytest.mark.parametrize("room", sorted(OUTSIDE))
def test_outside_imports(room: str) -> None:
    for path in files():
        if room_of(path) != room:
            continue
        allowed = OUTSIDE[room] | OUTSIDE_OF_FILE.get(path, set())
        for module in imported_modules((ROOT / path).read_text()):
            top = module.split(".")[0]
            known = top in allowed or top == room or top in sys.stdlib_module_names
            assert known, f"{path} imports {module}; it may import {sorted(allowed)} alone"


def test_examples_import_public_names_alone() -> None:
    public = {f"carve_jax.{name}" for name in carve_jax.__all__}
    sources = [path for path in files() if room_of(path) == "examples"]
    assert sources
    for path in sources:
        for module in imported_modules((ROOT / path).read_text("utf-8")):
            ours = file_of(module) is not None and not module.startswith("configs.")
            assert not ours or module in public, f"{path} imports {module}, which is not public"


# What a wing of experiments may import of the others; all may import the files that
# NO_COMMANDS names, and commands any wing.
WINGS: dict[str, set[str]] = {
    "help_pages": set(),
    "measuring": set(),
    "preparation": set(),
    "sweeps": set(),
    "evaluating": set(),
    "generating": set(),
    "fault_injection": set(),
    "peers": {"measuring"},
    "planning": {"measuring"},
    "reporting": {"sweeps", "evaluating"},
    "claims": {"reporting"},
    "theory": {"measuring", "reporting"},
    "benchmarks": {"measuring", "peers", "preparation"},
    "rented_gpu": {"measuring", "peers", "benchmarks"},
}


def wing_of(path: str) -> str | None:
    """The wing of experiments that a file lies in; None of a command and of what all share."""
    room, *wing, _ = path.split("/")
    return wing[0] if room == "experiments" and wing else None


def experiments() -> dict[str, set[str]]:
    """The files of experiments, each with those of them that it imports."""
    sources = [path for path in files() if room_of(path) == "experiments"]
    named = {
        path: {file_of(module) for module in imported_modules((ROOT / path).read_text("utf-8"))}
        for path in sources
    }
    return {path: (found & set(sources)) - {path} for path, found in named.items()}


def test_a_command_is_imported_by_no_other_file() -> None:
    shared = {f"experiments/{name}.py" for name in NO_COMMANDS}
    for path, found in experiments().items():
        for other in found - shared:
            command = wing_of(other) is None or other.endswith("/__main__.py")
            assert not command, f"{path} imports the command {other}: move what it needs to a wing"


def test_the_arrows_between_wings_are_those_that_are_drawn() -> None:
    used: dict[str, set[str]] = {wing: set() for wing in WINGS}
    for path, found in experiments().items():
        wing = wing_of(path)
        if wing is not None:
            assert wing in WINGS, f"{path} lies in no wing: give it a place in WINGS"
            used[wing] |= {other for other in map(wing_of, found) if other not in (None, wing)}
    assert used == WINGS


def test_there_are_no_circles_in_experiments() -> None:
    graphlib.TopologicalSorter(experiments()).prepare()
    graphlib.TopologicalSorter(WINGS).prepare()


def test_the_library_takes_no_trainer_along() -> None:
    unwanted = {"carve_jax.training", "carve_jax.data", "carve_jax.evaluation", "experiments"}
    unwanted |= {"grain", "orbax", "matplotlib", "optax", "tensorboardX", "tokenizers", "tqdm"}
    code = (
        "import sys, carve_jax, carve_jax.ops, carve_jax.model\n"
        f"print(*sorted({unwanted!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == []


def test_the_checker_sees_a_wrong_arrow() -> None:
    assert target("carve_jax.model.LMConfig") == "carve_jax/model.py"
    assert wrong_arrow("carve_jax/mixers", "carve_jax/model.py")
    assert wrong_arrow("carve_jax/training", "carve_jax/evaluation")
    assert not wrong_arrow("carve_jax/evaluation", "carve_jax/training")
    assert wrong_arrow("carve_jax/model.py", "carve_jax/data")
    assert not wrong_arrow("carve_jax/data", "carve_jax/data")


def test_the_checker_sees_a_circle() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    of_rooms = rooms_imported()
    of_rooms["carve_jax/config.py"].add("carve_jax/placement.py")
    found = circle(of_rooms)
    assert found[0] == found[-1]
    assert {"carve_jax/config.py", "carve_jax/placement.py"} <= set(found)
