"""The table of tiles: what is written, in what order, and what is refused."""

import json
from pathlib import Path

import pytest

from carve_jax.errors import UserError
from experiments.benchmarks import tile_table
from pallas_kernels import tiling
from tests.experiments.benchmarks.tile_rows import GENERIC
from tests.experiments.benchmarks.tile_rows import tile_row as row


def test_new_rows_come_before_generic_ones_and_narrow_before_wide() -> None:
    old = [row("NVIDIA H200", "bfloat16", 128, 64), row("NVIDIA H200", "bfloat16", 256), *GENERIC]
    rows = tile_table.merge_rows(old, [row("NVIDIA H200", "bfloat16", 64), old[0] | {"tiles": {}}])
    assert rows[3:] == GENERIC
    assert [(r["width"], r["tiles"]) for r in rows[:3]] == [
        (64, {"chunk": 32}),
        (128, {}),
        (256, {"chunk": 32}),
    ]


def test_rows_of_one_kind_come_before_rows_of_either() -> None:
    kinds = [row("NVIDIA H200", "bfloat16", 64, content=content) for content in (None, True, False)]
    wide = row("NVIDIA H200", "bfloat16", 128, content=True)
    rows = tile_table.merge_rows([*kinds, *GENERIC], [wide, kinds[1] | {"tiles": {"chunk": 16}}])
    assert [r.get("content") for r in rows[:4]] == [False, True, None, True]
    assert [r["tiles"]["chunk"] for r in rows[:4]] == [32, 16, 32, 32]
    assert rows[4:] == GENERIC


def test_a_longer_name_is_tried_before_one_that_it_contains() -> None:
    rows = tile_table.merge_rows(
        [row("NVIDIA H100 PCIe", "bfloat16", 64)], [row("H100", "bfloat16", 64)]
    )
    assert [r["device"] for r in rows] == ["NVIDIA H100 PCIe", "H100"]


def test_the_table_is_written_beside_what_it_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, path = tmp_path / "shipped.json", tmp_path / "mine.json"
    shipped.write_text(json.dumps(GENERIC))
    monkeypatch.setattr(tiling, "TABLE", shipped)
    tile_table.write_table(path, [row("NVIDIA H200", "bfloat16", 64, 16)])
    tile_table.write_table(path, [row("NVIDIA H200", "float16", 64, 64)])
    rows = json.loads(path.read_text())
    assert [r["device"] for r in rows] == ["NVIDIA H200"] * 2 + [""] * 3
    assert path.read_text().count("\n") == 2 + len(rows)
    assert json.loads(shipped.read_text()) == GENERIC
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_kernels_read_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps(GENERIC))
    h200 = "NVIDIA H200"
    found = [row(h200, "bfloat16", 64, 16, False), row(h200, "bfloat16", 64, 64, True)]
    tile_table.write_table(path, found)
    table = json.loads(path.read_text())
    monkeypatch.setattr(tiling, "read_table", lambda: table)
    assert tiling.choose("bfloat16", 64, 64, h200).chunk == 16
    assert tiling.choose("bfloat16", 64, 64, h200, content=True).chunk == 64
    assert tiling.choose("bfloat16", 128, 64, h200, content=True).chunk == 32
    assert tiling.choose("bfloat16", 64, 64, "NVIDIA A100").chunk == 32


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[1]",
        "[" * 100_000,
        '[{"device": ""}]',
        '[{"device": 1, "dtype": "", "width": 1}]',
        '[{"device": "", "dtype": "float32", "width": 64, "tiles": []}]',
        '[{"device": "", "dtype": "float32", "width": 64, "tiles": {"chunk": 3}}]',
        '[{"device": "", "dtype": "float32", "width": 64, "tiles": {"other": 3}}]',
        "[" + "1" * 5000 + "]",
    ],
)
def test_what_is_no_table_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "tiles.json").write_text(text)
    with pytest.raises(UserError, match="correct it, or leave --table out") as caught:
        tile_table.read_rows(tmp_path / "tiles.json")
    assert len(str(caught.value)) < 600 + 2 * len(str(tmp_path))


def test_a_broken_table_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        tile_table.read_rows(tmp_path / "bad.json")
    with pytest.raises(UserError, match="does not exist"):
        tile_table.read_rows(tmp_path / "nowhere" / "tiles.json")
