"""The gpu suite's bookkeeping, at tiny sizes and without a GPU; its timings are its command's."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from carve_jax.errors import UserError
from experiments import benchmark, cli
from experiments.benchmarks import gpu, gpu_figures
from experiments.benchmarks.decode_steps import DecodePlan
from experiments.benchmarks.gpu import OURS, Ours, Peers, Plan
from experiments.benchmarks.gpu_figures import Target
from experiments.benchmarks.train_steps import TrainPlan
from experiments.measuring.rule_calls import (
    LAYER,
    Shape,
    rule_arguments,
    rule_function,
    rule_inputs,
)
from experiments.measuring.timing import (
    Contender,
)
from pallas_kernels.tiling import Tiles
from tests.experiments.peers.fake_torch import FakeTorch, fake_fla

TINY = Shape(1, 64, 1, 16)
ABSENT = Peers("not installed (fla)", "not installed (jla)")
RATES = {"flop_per_second": 1e9, "bytes_per_second": 1e9}
WITHOUT_GPU = pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU here")


def plain(name: str) -> Ours:
    return OURS[name]._replace(implementation="recurrent", solve=None, floor=None)


@WITHOUT_GPU
@pytest.mark.parametrize("suite", ["gpu", "tune"], ids=["of peers", "of tiles"])
@pytest.mark.parametrize(
    ("mode", "said"),
    [("gpu", "needs an NVIDIA GPU"), ("interpret", "times kernels on a GPU, and CARVE_PALLAS=")],
)
def test_without_a_gpu_it_is_one_sentence(
    suite: str,
    mode: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CARVE_PALLAS", mode)
    assert cli.call(benchmark.main, ["benchmark", f"--suite={suite}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --suite={suite} {said}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite=gpu", "--only=9x9"], "--only: no part's name holds '9x9'"),
        (["--suite=tune", "--only=int8"], "there are bfloat16/64/gdn2"),
        (["--suite=cpu", "--only=decode"], "cpu has no parts"),
    ],
)
def test_parts_that_do_not_exist(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(benchmark.main, ["benchmark", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_only_keeps_the_parts_named() -> None:
    plan = Plan().only(("8x4096", "train"))
    assert plan.shapes == (LAYER,)
    assert plan.decode is None
    assert plan.train is not None
    assert Plan().only(()) == Plan()


def test_tiles_reach_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARVE_PALLAS", "interpret")
    arguments = rule_arguments(rule_inputs(TINY), "gdn2")
    programs = [
        str(jax.make_jaxpr(rule_function("gdn2", "pallas", tiles=Tiles(16, solve=s)))(*arguments))
        for s in ("parallel", "walk")
    ]
    assert all("pallas_call" in program for program in programs)
    assert programs[0] != programs[1]


@pytest.mark.parametrize("rule", ["gdn2", "carve"])
def test_the_floor_reaches_the_kernels(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARVE_PALLAS", "interpret")
    entry, arguments = OURS[f"{rule} pallas, bounded"], rule_arguments(rule_inputs(TINY), rule)
    assert (entry.rule, entry.implementation) == (rule, "pallas")
    programs = [
        str(jax.make_jaxpr(rule_function(rule, "pallas", log_decay_floor=f))(*arguments))
        for f in (None, entry.floor)
    ]
    assert all("pallas_call" in program for program in programs)
    assert programs[0] != programs[1]


def test_a_floor_is_promised_only_where_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def made(*_: object, **options: object) -> Contender:
        seen.append(options)
        return Contender(lambda: jnp.zeros(()), (), 0)

    monkeypatch.setattr(gpu, "rule_contender", made)
    name = "carve pallas, bounded"
    plan = Plan(ours={name: OURS[name]}, turn_seconds=0.0)
    part = gpu.measure_shape(TINY, plan, 1, ABSENT, RATES)
    assert seen == [{"log_decay_floor": -10.0}] * 2
    assert part["roofline_share"].keys() == {f"{name}, {d}" for d in gpu_figures.DIRECTIONS}
    steep = {**rule_inputs(TINY), "log_decay": jnp.full((1, 64, 1, 16), -11.0)}
    monkeypatch.setattr(gpu, "rule_inputs", lambda *_: steep)
    part = gpu.measure_shape(TINY, plan, 1, ABSENT, RATES)
    assert part["left_out"][f"{name}, forward"] == "a log-decay is -11.0, below -10"
    assert len(seen) == 2


def test_the_whole_suite_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    saved: list[str] = []
    torch = FakeTorch()
    plan = Plan(
        shapes=(TINY,),
        ours={name: plain(name) for name in ("gdn2 pallas", "carve pallas")},
        dtype="float32",
        chunked_elements=TINY.elements,
        decode=DecodePlan((1,), 1, 16, backends=("pallas",), interpret=True, most_steps=8),
        train=TrainPlan(implementation="no such thing"),
        turn_seconds=0.0,
    )
    figures = gpu.measure(
        plan,
        1,
        Peers(fake_fla(torch), "not installed (jla)"),
        lambda f: saved.append(json.dumps(f)),
        RATES,
    )
    assert [sorted(json.loads(text).keys() & {"shapes", "decode"}) for text in saved] == [
        ["shapes"],
        ["decode", "shapes"],
    ]
    part = figures["shapes"]["1x64x1x16"]
    names = {f"{who} {rule}" for who, rule in (("fla", "gdn2"), ("fla", "kda"))} | set(plan.ours)
    assert set(part["left_out"].values()) == {"not installed (jla)"}
    assert part["median_seconds"].keys() == part["peak_bytes"].keys()
    assert {name.split(", ")[0] for name in part["median_seconds"]} == names
    assert {name.split(", ")[0] for name in part["roofline_share"]} == names - {"fla kda"}
    assert part["ratios"]["carve pallas / gdn2 pallas, forward"] > 0
    assert part["ratios"]["gdn2 pallas walk / gdn2 pallas, forward"] is None
    assert part["difference_from_fla_gdn2"] > 0
    assert torch.calls[-1] == "empty"
    assert figures["decode"]["batches"]["1"]["pallas"]["seconds_a_step"] > 0
    for mixer in ("gdn2", "carve"):
        assert "unknown implementation" in figures["train_step"]["mixers"][mixer]["left_out"]
    printed = capsys.readouterr().out
    assert "not measured" in printed  # the official layer was not among the shapes
    assert printed.count("left out, ") == 2


def test_what_is_left_out_is_said() -> None:
    plan = Plan(
        ours={"gdn2 chunked": OURS["gdn2 chunked"], "none": Ours("gdn2", "no such thing")},
        chunked_elements=0,
        turn_seconds=0.0,
    )
    part = gpu.measure_shape(TINY, plan, 1, ABSENT, RATES)
    assert part["median_seconds"] == {}
    assert part["left_out"]["fla gdn2, forward"] == "not installed (fla)"
    assert part["left_out"]["jla kda, forward and backward"] == "not installed (jla)"
    assert "sits out" in part["left_out"]["gdn2 chunked, forward"]
    assert "unknown implementation" in part["left_out"]["none, forward"]


def test_a_contender_that_fills_the_device_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "device_bytes", lambda: 1.0)
    plan = Plan(ours={"gdn2 pallas": plain("gdn2 pallas")}, turn_seconds=0.0)
    part = gpu.measure_shape(TINY, plan, 1, ABSENT, RATES)
    assert "more than a third" in part["left_out"]["gdn2 pallas, forward"]


def test_the_walk_has_the_tiles_of_a_content_gate_but_for_that_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = {True: Tiles(chunk=16, warps=4), False: Tiles(chunk=64)}
    monkeypatch.setattr(gpu.tiling, "choose", lambda *_, content=False, **__: rows[content])
    seen = {}

    def made(*_: object, **options: object) -> Contender:
        seen.update(options)
        return Contender(lambda: jnp.zeros(()), (), 0)

    monkeypatch.setattr(gpu, "rule_contender", made)
    plan = Plan(ours={"gdn2 pallas walk": OURS["gdn2 pallas walk"]}, turn_seconds=0.0)
    gpu.measure_shape(TINY, plan, 1, ABSENT, RATES)
    assert seen == {"tiles": dataclasses.replace(rows[True], solve="walk")}


def test_targets_are_met_not_met_or_not_measured() -> None:
    ratios = {
        "fla gdn2 / gdn2 pallas, forward": 2.1,
        "fla gdn2 / gdn2 pallas, forward and backward": 1.4,
        "jla gdn2 / gdn2 pallas, forward": 0.9,
        "carve pallas / gdn2 pallas, forward": 1.2,
        "carve pallas / gdn2 pallas, forward and backward": 1.1,
    }
    both = "forward and backward"
    peak = {f"carve pallas, {both}": 9, f"gdn2 pallas, {both}": 10}
    shares = {"pallas": {"share_of_copy": 0.6}, "triton": {"share_of_copy": 0.8}}
    figures = {
        "shapes": {LAYER.label: {"ratios": ratios, "peak_bytes": peak}},
        "decode": {"batches": {"512": shares}},
        "train_step": {"left_out": "no memory"},
    }
    met = [target.met for target in gpu_figures.targets(figures)]
    assert met == [True, False, False, None, False, True, True, True, None, None]
    assert [t.met for t in gpu_figures.targets({"shapes": {}})] == [None] * 10
    assert str(Target("what", None, 2.0, True)).endswith("not measured")
    assert str(Target("what", 1.0, 2.0, True)).endswith("not met")


def test_the_record_is_written_as_the_suite_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "record.json"

    def suite(options: benchmark.Options) -> dict:
        options.save({"part": 1})
        assert json.loads(path.read_text())["part"] == 1
        assert options.repeats == 2
        assert options.only == ("decode", "8x")
        assert not options.train_step
        return {"part": 2}

    monkeypatch.setitem(benchmark.SUITES, "gpu", suite)
    arguments = ["--suite=gpu", "--repeats=2", "--only=decode,8x", "--train_step=false"]
    assert cli.call(benchmark.main, ["benchmark", *arguments, f"--output={path}"]) == 0
    record = json.loads(path.read_text())
    assert record["part"] == 2
    assert {"date", "commit", "versions", "devices", "command"} <= record.keys()


def test_no_device_memory_is_no_bound() -> None:
    assert gpu.device_bytes() > 0
    assert not math.isnan(gpu.device_bytes())


def test_a_wrong_part_is_a_user_error() -> None:
    with pytest.raises(UserError, match="train_step"):
        Plan().only(("trane",))
