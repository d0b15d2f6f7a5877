"""The committed figures of the kernels: of these sources, and within the budgets."""

import copy
import json
from pathlib import Path

import pytest

from pallas_kernels.compiling import budgets, catalogue

RECORD = json.loads(budgets.RECORD.read_text()) if budgets.RECORD.exists() else {"kernels": {}}


def test_the_record_is_of_these_sources() -> None:
    assert RECORD.get("fingerprint") == budgets.fingerprint(), (
        f"kernels have changed since compiling/budgets.json was written: run {budgets.COMMAND} "
        "where the extra aot is installed, and commit it"
    )


def test_the_record_is_within_the_budgets() -> None:
    """But for those that are known to be missed, each of which must still be."""
    told = [sentence.partition(":")[0] for sentence in budgets.over_budget(RECORD["kernels"])]
    assert told == list(budgets.MISSED)


def test_every_budget_has_its_kernels() -> None:
    for budget in budgets.BUDGETS:
        rows = list(budgets._rows(RECORD["kernels"], budget.program, budget.phase, budget.kernels))
        assert rows, f"no kernel of {budget} is recorded"


def test_what_is_counted_is_recorded() -> None:
    counted = {p.label for p in catalogue.counted("NVIDIA H100", 9.0)}
    assert counted == {"/".join(key.split("/")[:3]) for key in RECORD["kernels"]}


def row(instructions: int = 100, spills: int = 0) -> dict[str, int]:
    return {
        "for_64_tokens": instructions,
        "instructions": 64 * instructions,
        "registers": 200,
        "spills": spills,
        "shared": 1024,
    }


def test_budgets_are_of_the_official_size() -> None:
    over, under = row(30_000, spills=8), row(28_000)
    assert budgets.over_budget({"gdn2/128x128c64/bfloat16/forward/_span_kernel": under}) == []
    (told,) = budgets.over_budget({"gdn2/128x128c64/bfloat16/forward/_span_kernel": over})
    assert "30,000 warp instructions for 64 tokens of a head; the budget is 28,000" in told
    for other in (
        "gdn2/128x128c64/float32/forward/_span_kernel",
        "gdn2/64x64c64/bfloat16/forward/_span_kernel",
        "gdn2/128x128c64H8/bfloat16/forward/_span_kernel",
        "gdn2_walk/128x128c64/bfloat16/forward/_span_kernel",
    ):
        assert budgets.over_budget({other: over}) == []
    both = {f"carve/128x128c64/bfloat16/backward/{name}": row(30_000) for name in budgets.GRADIENTS}
    assert len(budgets.over_budget(both)) == 1  # counted together
    (spill,) = budgets.over_budget({"carve/128x128c64/bfloat16/backward/_walk_back_kernel": over})
    assert "8 bytes of spills in a scan" in spill


def test_what_got_worse_is_told() -> None:
    old = {"fingerprint": "a", "kernels": {"p/t/d/f/k": row(), "p/t/d/f/gone": row()}}
    assert budgets.worse(old, old, whole=True) == []
    new = copy.deepcopy(old)
    del new["kernels"]["p/t/d/f/gone"]
    assert budgets.worse(new, old, whole=False) == []
    assert "no kernel any more" in budgets.worse(new, old, whole=True)[0]
    new["kernels"]["p/t/d/f/k"] |= {"spills": 4, "instructions": 6450}
    assert budgets.worse(new, old, whole=False) == ["p/t/d/f/k: 4 spills, recorded 0"]
    new["kernels"]["p/t/d/f/k"]["instructions"] = 6500
    assert "6500 instructions, recorded 6400" in budgets.worse(new, old, whole=False)[0]
    new["fingerprint"] = "b"
    assert budgets.COMMAND in budgets.worse(new, old, whole=False)[0]


def test_a_part_is_merged_into_the_whole() -> None:
    old = {"fingerprint": "a", "jax": "1", "kernels": {"p/k": row(1), "q/k": row(2)}}
    new = {"fingerprint": "a", "jax": "2", "kernels": {"q/k": row(3)}}
    assert budgets.merge(new, old) == {**new, "kernels": {"p/k": row(1), "q/k": row(3)}}
    other = {**new, "fingerprint": "b"}
    assert budgets.merge(other, old)["fingerprint"] == "a"  # p was not counted again


SOURCE = '''"""A module."""

def double(x):
    """Twice x."""
    return f"{2 * x}"  # as text
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "kernel.py").write_text(SOURCE)
    (tmp_path / "tiles.json").write_text('[{"chunk": 64}]')
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# as text", "# otherwise", True),
        ("Twice x.", "2 x.", True),
        ("A module.", "Another.", True),
        ("def double(x):\n", "def double(x):\n\n", True),
        ("2 * x", "3 * x", False),
        ("double", "twice", False),
        ('    """Twice x."""\n', "", True),
    ],
)
def test_the_fingerprint_sees_meaning_alone(package: Path, old: str, new: str, same: bool) -> None:
    before = budgets.fingerprint(package)
    (package / "triton" / "kernel.py").write_text(SOURCE.replace(old, new))
    assert (budgets.fingerprint(package) == before) == same


def test_the_fingerprint_sees_tiles(package: Path) -> None:
    before = budgets.fingerprint(package)
    (package / "tiles.json").write_text('[ {"chunk":  64} ]')
    assert budgets.fingerprint(package) == before
    (package / "tiles.json").write_text('[{"chunk": 32}]')
    assert budgets.fingerprint(package) != before


def test_the_fingerprint_is_one_for_every_python(package: Path) -> None:
    assert budgets.fingerprint(package) == "b4ac961928fc9281"
