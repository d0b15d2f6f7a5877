"""Imports flow one way between the rooms, and each room's outside imports are those it may have."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A file may import its own layer and those above it in this list.
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
    ("carve_jax/config.py", "carve_jax/model.py", "carve_jax/placement.py"),
    ("carve_jax/decoding.py", "carve_jax/decoding_file.py", "carve_jax/generate.py"),
    ("carve_jax/accounting.py", "carve_jax/interop"),
    ("carve_jax/training", "carve_jax/evaluation"),
    ("experiments",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms} | {"configs": 0}
OUTSIDE = {"pallas_kernels": {"jax", "numpy"}, "configs": {"ml_collections"}}
# Files that nobody imports unless asked, and what they may import besides.
OUTSIDE_OF_FILE = {
    "pallas_kernels/compiling/pip_triton.py": {"triton"},
    "pallas_kernels/decode/triton_step.py": {"triton", "jax_triton"},
}


def room_of(path: str) -> str | None:
    """The room that a file (relative to the root) lies in."""
    return next((r for r in LEVEL if path == r or path.startswith(r + "/")), None)


def imported_modules(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def target(module: str) -> str | None:
    """The room that an imported dotted name lies in, if it is one of ours."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        base = "/".join(parts[:end])
        for path in (base + ".py", base + "/__init__.py"):
            if (ROOT / path).exists():
                return room_of(path)
    return None


def files() -> list[str]:
    found = [
        p.relative_to(ROOT)
        for room in ("pallas_kernels", "carve_jax", "configs", "experiments")
        for p in (ROOT / room).rglob("*.py")
    ]
    return sorted(str(p) for p in found if str(p) != "carve_jax/__init__.py")


@pytest.mark.parametrize("path", files())
def test_arrows(path: str) -> None:
    room = room_of(path)
    assert room is not None, f"{path} lies in no room: give it a place in LAYERS"
    for module in imported_modules((ROOT / path).read_text()):
        other = target(module)
        assert other is None or LEVEL[other] <= LEVEL[room], f"{path} imports {module}"


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


def test_the_checker_sees_a_wrong_arrow() -> None:
    assert target("carve_jax.model.LMConfig") == "carve_jax/model.py"
    assert LEVEL["carve_jax/model.py"] > LEVEL["carve_jax/mixers"]
