"""The search of tiles and the table it writes, with a clock that the test sets."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from carve_jax.errors import UserError
from experiments.benchmarks import tune
from experiments.benchmarks.tune import Part
from experiments.measuring.rule_calls import Shape, rule_contender, rule_inputs
from pallas_kernels import tiling
from pallas_kernels.backends import BACKENDS
from pallas_kernels.call import Request
from pallas_kernels.tiling import Tiles

START = Tiles(chunk=32, warps=8, stages=2)


def row(device: str, dtype: str, width: int, chunk: int = 32, content: bool | None = None) -> dict:
    """A row of the table; for either kind of rule if `content` is None."""
    kind = {} if content is None else {"content": content}
    sizes = {"device": device, "dtype": dtype, "width": width}
    return {**sizes, **kind, "tiles": {"chunk": chunk}}


GENERIC = [row("", "bfloat16", 64), row("", "bfloat16", 256), row("", "float32", 256)]


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
    refused = {part.label for part in tune.PARTS if part.why_not is not None}
    assert refused == {"float16/256/carve", "float32/256/carve"}
    for part in tune.PARTS:
        sizes = {"B": 1, "T": 64, "N": 1, "K": part.width, "V": part.width}
        request = Request(part.dtype, sizes, part.content)
        reason = BACKENDS["triton"].unsupported_reason(request)
        assert (reason is None) == (part.why_not is None)


def test_new_rows_come_before_generic_ones_and_narrow_before_wide() -> None:
    old = [row("NVIDIA H200", "bfloat16", 128, 64), row("NVIDIA H200", "bfloat16", 256), *GENERIC]
    rows = tune.merge_rows(old, [row("NVIDIA H200", "bfloat16", 64), old[0] | {"tiles": {}}])
    assert rows[3:] == GENERIC
    assert [(r["width"], r["tiles"]) for r in rows[:3]] == [
        (64, {"chunk": 32}),
        (128, {}),
        (256, {"chunk": 32}),
    ]


def test_rows_of_one_kind_come_before_rows_of_either() -> None:
    kinds = [row("NVIDIA H200", "bfloat16", 64, content=content) for content in (None, True, False)]
    wide = row("NVIDIA H200", "bfloat16", 128, content=True)
    rows = tune.merge_rows([*kinds, *GENERIC], [wide, kinds[1] | {"tiles": {"chunk": 16}}])
    assert [r.get("content") for r in rows[:4]] == [False, True, None, True]
    assert [r["tiles"]["chunk"] for r in rows[:4]] == [32, 16, 32, 32]
    assert rows[4:] == GENERIC


def test_a_longer_name_is_tried_before_one_that_it_contains() -> None:
    rows = tune.merge_rows([row("NVIDIA H100 PCIe", "bfloat16", 64)], [row("H100", "bfloat16", 64)])
    assert [r["device"] for r in rows] == ["NVIDIA H100 PCIe", "H100"]


def test_the_table_is_written_beside_what_it_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, path = tmp_path / "shipped.json", tmp_path / "mine.json"
    shipped.write_text(json.dumps(GENERIC))
    monkeypatch.setattr(tiling, "TABLE", shipped)
    tune.write_table(path, [row("NVIDIA H200", "bfloat16", 64, 16)])
    tune.write_table(path, [row("NVIDIA H200", "float16", 64, 64)])
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
    tune.write_table(path, found)
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
        tune.read_rows(tmp_path / "tiles.json")
    assert len(str(caught.value)) < 600 + 2 * len(str(tmp_path))


def test_a_broken_table_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        tune.read_rows(tmp_path / "bad.json")
    with pytest.raises(UserError, match="does not exist"):
        tune.read_rows(tmp_path / "nowhere" / "tiles.json")


def test_keys_resemble_each_other_and_keep_their_norm() -> None:
    x = rule_inputs(Shape(1, 64, 2, 16))
    key = tune.correlated(x)["key"]
    assert float(jnp.abs(jnp.linalg.norm(key, axis=-1) - 1).max()) < 1e-5
    cosines = jnp.einsum("bthk,bshk->bhts", key, key)
    assert float(cosines.mean()) > 0.5 > abs(float(jnp.mean(x["key"])))


def test_the_largest_difference_counts_and_nan_with_it() -> None:
    left, right = (jnp.ones(4), jnp.ones(4)), (jnp.ones(4), jnp.full(4, 2.0))
    assert tune.difference(left, left) == 0
    assert tune.difference(left, right) == pytest.approx(0.5)
    assert math.isnan(tune.difference((jnp.full(4, jnp.nan), jnp.ones(4)), left))


@pytest.mark.parametrize("rule", ["gdn2", "carve"])
@pytest.mark.parametrize(
    ("factor", "dropped"), [(1.0, None), (1.5, "off by"), (math.nan, "off by nan")]
)
def test_a_trial_times_only_what_is_right(
    factor: float, dropped: str | None, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def made(x, rule, implementation, backward, tiles=None):
        calls.append((rule, tiles))
        x = x if tiles is None else x | {"cotangent": x["cotangent"] * factor}
        return rule_contender(x, rule, "recurrent", backward)

    monkeypatch.setattr(tune, "rule_contender", made)
    monkeypatch.setattr(tune, "median_seconds", lambda timed, *_, **__: dict.fromkeys(timed, 2.0))
    outcome = tune.Trial(Shape(1, 8, 1, 16), "float32", rule, 1).measure(START)
    assert calls == [(rule, None), (rule, START)]
    if dropped is None:
        assert outcome == 2.0
    else:
        assert isinstance(outcome, str)
        assert f"{rule} is {dropped}" in outcome


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
