"""What a compiled step is said to do, part by part."""

import dataclasses
import json

import pytest

from carve_jax.config import LMConfig
from carve_jax.errors import UserError
from carve_jax.sharding import AXES
from experiments import cli, plan
from experiments.measuring.train_steps import LAYER_SIZES
from experiments.planning import anatomy, step_anatomy
from experiments.planning.anatomy import Piece
from experiments.planning.chips import CHIPS
from experiments.planning.collectives import Collective
from experiments.planning.kernel_times import kernel_seconds
from experiments.planning.measured_steps import held_against
from experiments.planning.memory_traffic import kernels, traffic
from experiments.planning.rates import Rates, reached_rates
from tests.training.helpers import tiny_config

ONE = dict.fromkeys(AXES, 1)
MODEL = LMConfig(**LAYER_SIZES, pattern=("gdn2",), compute_dtype="bfloat16", remat="full")
PATH = "jit(train_step)/transpose(jvp(LanguageModel.hidden))/while/body/blocks/checkpoint"
LAYER = "layer_0_gdn2/mixer"
TRITON = 'custom_call_target="__gpu$xla.gpu.triton"'

STEP = f"""HloModule jit_train_step, is_scheduled=true

%product (p0: bf16[64,32], p1: bf16[32,16]) -> f32[64,16] {{
  %p0 = bf16[64,32]{{1,0}} parameter(0)
  %p1 = bf16[32,16]{{1,0}} parameter(1)
  %dot = f32[64,16]{{1,0}} dot(%p0, %p1), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, \
metadata={{op_name="{PATH}/rematted_computation/{LAYER}/mixer._projected/q_proj/dot_general"}}
  ROOT %wide = f32[64,16]{{1,0}} negate(%dot), metadata={{op_name="{PATH}/{LAYER}/neg"}}
}}

%moved (q0: f32[64,16], q1: s32[]) -> bf16[16,64] {{
  %q0 = f32[64,16]{{1,0}} parameter(0)
  %q1 = s32[] parameter(1)
  %next = s32[] add(%q1, %q1)
  %half = bf16[64,16]{{1,0}} convert(%q0)
  ROOT %turned = bf16[16,64]{{1,0}} transpose(%half), dimensions={{1,0}}
}}

%put (r0: f32[9,64,16], r1: f32[64,16], r2: s32[]) -> f32[9,64,16] {{
  %r0 = f32[9,64,16]{{2,1,0}} parameter(0)
  %r1 = f32[64,16]{{1,0}} parameter(1)
  %r2 = s32[] parameter(2)
  ROOT %in_place = f32[9,64,16]{{2,1,0}} dynamic-update-slice(%r0, %r1, %r2, %r2, %r2)
}}

%turn (carry: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {{
  %carry = (s32[], bf16[64,32]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = bf16[64,32]{{1,0}} get-tuple-element(%carry), index=1
  %q = f32[64,16]{{1,0}} fusion(%x, %w), kind=kCustom, calls=%product
  %t = bf16[16,64]{{1,0}} fusion(%q, %i), kind=kInput, calls=%moved
  %kept = ((f32[9,64,16]{{2,1,0}}, f32[64,16]{{1,0}}), f32[9,64,16]{{2,1,0}}, u32[]) \
fusion-start(%all, %q, %i), kind=kLoop, calls=%put, \
metadata={{op_name="{PATH}/dynamic_update_slice"}}
  %again = f32[64,16]{{1,0}} custom-call(%q), {TRITON}, \
metadata={{op_name="{PATH}/rematted_computation/{LAYER}/mixer._rule/pallas_call"}}, \
backend_config={{grid_x = 4 : i32, name = "_span_kernel", num_warps = 4 : i32}}
  %first = f32[64,16]{{1,0}} custom-call(%q), {TRITON}, \
metadata={{op_name="{PATH}/{LAYER}/mixer._rule/pallas_call"}}, \
backend_config={{name = "_span_kernel"}}
  %second = f32[64,16]{{1,0}} custom-call(%q), {TRITON}, \
metadata={{op_name="{PATH}/{LAYER}/mixer._rule/pallas_call"}}, \
backend_config={{name = "_span_kernel"}}
  %gather = f32[64,16]{{1,0}} all-gather(%part), replica_groups={{{{0,1}}}}
}}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {{
  %while = (s32[], bf16[64,32]{{1,0}}) while(%tuple), condition=%goes_on, body=%turn, \
backend_config={{"known_trip_count":{{"n":"9"}}}}
  ROOT %update = f32[8,8]{{1,0}} multiply(%x, %x), metadata={{op_name="jit(train_step)/mul"}}
}}
"""


@pytest.fixture(scope="module")
def pieces():
    times = {("gdn2", "forward", "_span_kernel"): 0.3, ("gdn2", "backward", "_span_kernel"): 0.5}
    sent = [Collective("all-gather", 100.0, 9, 2, f"{PATH}/{LAYER}/q_proj")]
    return anatomy.dissect(kernels(STEP), sent, Rates(1e9, 1e9, 1e3, "made up"), times)


def test_every_kernel_belongs_to_a_part_and_a_pass(pieces):
    assert [(p.part, p.pass_) for p in pieces] == [
        ("collectives", "backward"),
        ("projections", "again"),
        ("copies, casts and transposes", "forward"),
        ("copies, casts and transposes", "backward"),
        ("rule forward again", "again"),
        ("rule backward", "backward"),
        ("rule backward", "backward"),
        ("optimizer", "update"),
    ]


def test_times_are_those_of_bytes_or_products_or_of_our_kernels(pieces):
    sent, product, cast, put, again, first, second, update = pieces
    assert sent.seconds == pytest.approx(9 * 100 / 1e3)
    assert product.flops == 9 * 2 * 64 * 32 * 16
    assert product.seconds == pytest.approx(product.flops / 1e9)
    assert cast.moved == 9 * (64 * 16 * 4 + 4 + 64 * 16 * 2)
    assert cast.seconds == pytest.approx(cast.moved / 1e9)
    assert put.moved == 9 * (2 * 64 * 16 * 4 + 4)  # the slice alone
    assert again.seconds == pytest.approx(0.3)
    assert first.seconds == second.seconds == pytest.approx(0.25)
    assert update.seconds == anatomy.LAUNCH
    ours = sum(p.moved for p in pieces if p.ours)
    gathered = 9 * 64 * 16 * 4
    assert traffic(STEP) == sum(p.moved for p in pieces) - ours + gathered


def test_sums_and_what_is_done_twice(pieces):
    parts = anatomy.table_of_parts(pieces)
    assert list(parts) == [part for part in anatomy.PARTS if part in parts]
    assert sum(part["seconds"] for part in parts.values()) == pytest.approx(
        sum(piece.seconds for piece in pieces)
    )
    assert parts["rule backward"]["seconds backward"] == pytest.approx(0.5)
    twice = anatomy.done_twice(pieces)
    assert list(twice) == ["rule forward again", "projections"]
    first = Piece("rule forward", "forward", "_span_kernel", 0.0, 0.0, 0.3, ours=True)
    assert anatomy.done_twice([*pieces, first])["inside rule backward: scores and states"] == 0.5
    [most, *_] = anatomy.longest(pieces, 2)
    assert (most["part"], most["name"]) == ("collectives", f"{LAYER}/q_proj")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (f"{LAYER}/mixer._rule/isolated/reduce_and", "documents kept apart"),
        (f"{LAYER}/mixer._rule/mixer._gates/mixer._decay/mul", "gates, norms and residuals"),
        (f"{LAYER}/mixer._rule/exp", "rule backward"),
        (f"{LAYER}/mixer._projected/short_conv/reduce_sum", "short convolutions"),
        ("layer_1_swa/mixer/attention/reduce_max", "attention"),
        ("layer_0_gdn2/mlp/jit(silu)/mul", "MLP"),
        ("loss/while/body/head/dot_general", "embedding, head and loss"),
        ("layer_0_gdn2/add", "gates, norms and residuals"),
        ("reduce_sum", "other"),
    ],
)
def test_scopes_name_parts(name, part):
    assert anatomy.part_of(f"{PATH}/{name}", product=False, inside=kernels(STEP)[0].inside) == part


def test_recorded_kernels_scale_with_rows_and_scans_with_their_waves():
    eight = kernel_seconds(MODEL, 8, 4096, ONE, 1)
    assert eight["gdn2", "forward", "_span_kernel"] == pytest.approx(18 * 1.0029e-3, rel=1e-3)
    four = kernel_seconds(MODEL, 4, 4096, ONE, 1)
    for (mixer, phase, kernel), seconds in four.items():
        ratio = seconds / eight[mixer, phase, kernel]
        assert (0.5 < ratio < 1) if kernel.startswith("_walk") else ratio == pytest.approx(0.5)
    halves = kernel_seconds(MODEL, 8, 4096, ONE | {"fsdp": 2}, 3)
    assert halves == pytest.approx({key: 3 * seconds for key, seconds in four.items()})
    odd = dataclasses.replace(MODEL, key_dim=32)
    with pytest.raises(UserError, match="heads of 32 by 128 in bfloat16"):
        kernel_seconds(odd, 8, 4096, ONE, 1)


def test_long_gate_chunks_take_the_plain_rules_kernels():
    carve = dataclasses.replace(MODEL, pattern=("carve",))

    def seconds(model, kernel):
        times = kernel_seconds(model, 8, 4096, ONE, 1)
        return next(s for (_, phase, name), s in times.items() if (phase, name) == kernel)

    scan = ("forward", "_walk_kernel")
    short, plain = seconds(carve, scan), seconds(MODEL, scan)
    for tokens in (256, 512):
        gates = dataclasses.replace(carve.gates, gate_chunk=tokens)
        long = seconds(dataclasses.replace(carve, gates=gates), scan)
        assert plain < long < 1.2 * plain < short / 2


def test_the_measured_step_is_held_against_its_prediction():
    kind = CHIPS["h100"].kind
    rest = [
        Piece("MLP", "forward", "", 0.0, 0.0, 0.4),
        Piece("rule forward", "", "", 0, 0, 9, True),
    ]
    held = held_against(MODEL, 4, 4096, kind, rest)
    assert held["seconds"] == 0.574
    found = held["with the kernels of then"]["scans half as long"]
    assert found["rule_seconds"] == pytest.approx(18 * (3.869 + 13.869) / 2 / 1e3, rel=1e-3)
    assert found["error"] == pytest.approx((0.4 + found["rule_seconds"]) / 0.574 - 1)
    assert held_against(MODEL, 8, 4096, kind, rest) is None
    other = dataclasses.replace(MODEL, remat="rule")
    assert held_against(other, 4, 4096, kind, rest) is None


def test_rates_are_in_proportion_to_the_datasheets():
    assert reached_rates(CHIPS["h100"], 1)[:2] == pytest.approx((805e12, 2.97e12))
    assert reached_rates(CHIPS["h200"], 1).bandwidth == pytest.approx(4.8 / 3.35 * 2.97e12)


class Compiled:
    """As far as an anatomy asks a compiled step."""

    def as_text(self):
        return STEP


def test_the_command_adds_an_entry_to_its_file(monkeypatch, tmp_path, capsys):
    config = tiny_config(model__pattern=("gdn2",))
    monkeypatch.setattr(cli, "load_config", lambda *given: config)
    monkeypatch.setattr(plan, "find_target", lambda *given: step_target())
    monkeypatch.setattr(step_anatomy, "make_steps", fake_steps(config))
    monkeypatch.setattr(step_anatomy, "compile_step", lambda *given: Compiled())
    monkeypatch.setattr(step_anatomy, "peak_bytes", lambda compiled: 3e9)
    times = {("gdn2", w, "_span_kernel"): 1e-3 for w in ("forward", "backward")}
    monkeypatch.setattr(step_anatomy, "kernel_seconds", lambda *given: times)
    path = tmp_path / "anatomy.json"
    path.write_text(json.dumps({"anatomy": {"before": {"parts": {}}}}))
    argv = ["plan", "--anatomy", "--config=tiny.py", "--chips=1", f"--output={path}"]
    assert cli.call(plan.main, argv) == 0
    entries = json.loads(path.read_text())["anatomy"]
    assert list(entries) == ["before", "tiny, remat=none"]
    entry = entries["tiny, remat=none"]
    assert entry["seconds"] == pytest.approx(sum(p["seconds"] for p in entry["parts"].values()))
    assert entry["rates"]["source"].startswith("of a copy")
    out = capsys.readouterr().out
    assert "predicted, not measured" in out
    assert "3.0 GB of a device" in out
    config.model.scan_layers = False
    assert cli.call(plan.main, argv) == 0
    assert "tiny, remat=none, unrolled" in json.loads(path.read_text())["anatomy"]
    capsys.readouterr()
    path.write_text("{}")
    assert cli.call(plan.main, argv) == 2
    assert "holds no anatomy" in capsys.readouterr().err


def step_target():
    return plan.Target("h100", CHIPS["h100"], 1, "gpu", None)


def fake_steps(config):
    def make(*given):
        model = step_anatomy.read_settings(config).model
        return type("Model", (), {"config": model}), None, None

    return make


def test_nothing_is_taken_apart_that_does_not_compile_for_a_gpu(capsys):
    argv = ["plan", "--anatomy", "--config=configs/gdn2_1b3.py", "--compile=no"]
    assert cli.call(plan.main, argv) == 2
    assert "give --compile=gpu" in capsys.readouterr().err
