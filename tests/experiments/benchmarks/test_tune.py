"""The search of tiles, with a clock that the test sets."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from experiments.benchmarks import tune
from experiments.benchmarks.tune import Part
from experiments.measuring.rule_calls import Shape
from pallas_kernels import tiling
from pallas_kernels.backends import BACKENDS
from pallas_kernels.call import Request
from pallas_kernels.tiling import Tiles
from tests.experiments.benchmarks.tile_rows import GENERIC

START = Tiles(chunk=32, warps=8, stages=2)


def test_the_search_finds_the_best_of_each_field() -> None:
    tried = []

    def measure(tiles: Tiles) -> float:
        tried.append(tiles)
        return 1 + abs(tiles.chunk - 16) + abs(tiles.warps - 4) + tiles.stages

    fields = {"chunk": (16, 32, 64), "warps": (4, 8), "stages": (1, 2)}
    found = tune.search(START, fields, measure)
    assert found.tiles == dataclasses.replace(START, chunk=16, warps=4, stages=1)
    assert found.seconds == 2
    assert len(tried) == len(set(tried)) == len(found.tried)


def test_what_is_wrong_is_never_chosen_however_fast() -> None:
    def measure(tiles: Tiles) -> float | str:
        return "gdn2 is off by 3e-1" if tiles.chunk == 16 else 1.0

    found = tune.search(START, {"chunk": (16, 32)}, measure)
    assert found.tiles == START
    assert found.tried[dataclasses.replace(START, chunk=16)] == "gdn2 is off by 3e-1"


def test_a_start_that_fails_is_left_behind() -> None:
    def measure(tiles: Tiles) -> float | str:
        return 5.0 if tiles.chunk == 16 else "too much shared memory"

    assert tune.search(START, {"chunk": (16, 64)}, measure).tiles == Tiles(chunk=16)
    nothing = tune.search(START, {"chunk": (64,)}, measure)
    assert nothing.tiles is None
    assert tune.record(nothing)["tiles"] is None


def test_noise_moves_nothing() -> None:
    def measure(tiles: Tiles) -> float:
        return 0.99 if tiles.warps == 4 else 1.0

    assert tune.search(START, {"warps": (4, 8)}, measure).tiles == START


def test_a_second_round_sees_what_the_first_changed() -> None:
    def measure(tiles: Tiles) -> float:
        if tiles.stages == 1:
            return 1.0 if tiles.chunk == 16 else 2.0
        return 3.0 if tiles.chunk == 32 else 4.0

    found = tune.search(START, {"chunk": (16, 32), "stages": (1, 2)}, measure)
    assert found.tiles == dataclasses.replace(START, chunk=16, stages=1)


def test_every_candidate_of_the_grid_is_valid() -> None:
    for part in tune.PARTS:
        for field, values in tune.grid(part).items():
            for value in values:
                dataclasses.replace(Tiles(), **{field: value})
    assert max(tune.grid(Part("bfloat16", 64, "gdn2"))["block_value"]) == 64
    carve = tune.grid(Part("bfloat16", 64, "carve"))
    assert "block_value" not in carve  # a program holds all values
    assert carve["block_key"] == (16, 32, 64)


def test_every_kind_of_rule_has_its_own_search_where_a_state_fits() -> None:
    assert len(set(tune.PARTS)) == 3 * 3 * 2
    refused = {part.label for part in tune.PARTS if part.unsupported_reason is not None}
    assert refused == {"float16/256/carve", "float32/256/carve"}
    for part in tune.PARTS:
        sizes = {"B": 1, "T": 64, "N": 1, "K": part.width, "V": part.width}
        request = Request(part.dtype, sizes, part.content)
        reason = BACKENDS["triton"].unsupported_reason(request)
        assert (reason is None) == (part.unsupported_reason is None)


def test_the_suite_writes_each_row_and_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps(GENERIC))

    class Trial:
        def __init__(self, shape: Shape, dtype: str, rule: str, repeats: int) -> None:
            self.width, self.best = shape.channels, {"gdn2": 16, "carve": 32}[rule]

        def measure(self, tiles: Tiles) -> float | str:
            if self.width == 256 or tiles.chunk == 64:
                return "no room"
            return 1.0 + abs(tiles.chunk - self.best)

    monkeypatch.setattr(tune, "require_gpu", lambda _: None)
    monkeypatch.setattr(tune, "Trial", Trial)
    starts = {False: START, True: dataclasses.replace(START, backward_stages=1)}
    monkeypatch.setattr(tiling, "choose", lambda *sizes: starts[sizes[4]])
    saved: list[dict] = []
    figures = tune.tune_suite(1, saved.append, path, ("bfloat16/128", "float32/256"))
    names = ["bfloat16/128/gdn2", "bfloat16/128/carve", "float32/256/gdn2"]
    assert list(figures["searches"]) == names
    assert list(figures["left_out"]) == ["float32/256/carve"]
    assert len(saved) == 4
    rows = json.loads(path.read_text())
    assert rows[2:] == GENERIC
    assert [row["content"] for row in rows[:2]] == [False, True]
    assert {row["device"] for row in rows[:2]} == {jax.devices()[0].device_kind}
    assert Tiles(**rows[0]["tiles"]) == dataclasses.replace(starts[False], chunk=16)
    assert Tiles(**rows[1]["tiles"]) == starts[True]  # the best there is
    tried = [figures["searches"][name]["tried"] for name in names]
    assert tried[0][0]["outcome"] == 1.0
    assert figures["searches"]["float32/256/gdn2"]["tiles"] is None
    printed = capsys.readouterr().out
    assert "dropped: no room" in printed
    assert "left out, under a content gate" in printed
    assert "the table stays as it is" in printed
    json.dumps(figures)
