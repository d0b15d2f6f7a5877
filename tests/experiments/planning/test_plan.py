"""The plan's figures: held against compiled programs, and against sums done by hand."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from carve_jax.sharding import AXES, make_mesh
from carve_jax.training.run import make_model
from experiments import cli, plan
from experiments.planning import ahead_of_time, budget, chips, collectives
from experiments.planning.memory_traffic import traffic
from pallas_kernels import device
from tests.training.helpers import tiny_config

ROOT = Path(__file__).resolve().parents[3]
CARVE = ROOT / "configs" / "carve_1b3.py"
SIZES = dict.fromkeys(AXES, 1)

PROGRAM = """HloModule jit_step, is_scheduled=true

%sum (x: f32[], y: f32[]) -> f32[] {
  ROOT %add = f32[] add(%x, %y)
}

%inner (carry: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %part = f32[2,16]{1,0} reduce-scatter(%grad), replica_groups=[2,4]<=[8], to_apply=%sum
}

%outer (carry: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %start = (bf16[2,16]{1,0}, /*index=1*/bf16[8,16]{1,0}) all-gather-start(%weights), \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, metadata={op_name="jit(step)/gathered"}
  %done = bf16[8,16]{1,0} all-gather-done(%start)
  %while.2 = (s32[], f32[8,16]) while(%tuple), condition=%goes_on, body=%inner, \
backend_config={"known_trip_count":{"n":"5"}}
}

%never (x: f32[8]) -> f32[8] {
  %lost = f32[8] all-reduce(%x), replica_groups={}, to_apply=%sum
}

ENTRY %main (x: f32[8,16]) -> f32[] {
  %while.1 = (s32[], f32[8,16]) while(%tuple), condition=%goes_on, body=%outer, \
backend_config={"known_trip_count":{"n":"3"}}
  %total = f32[100]{0} all-reduce-start(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%sum
  ROOT %moved = (f32[6]{0}, f32[6]{0}, u32[], u32[]) all-to-all(%y), replica_groups={}
}
"""


def test_collectives_count_as_often_as_their_loops_turn():
    found = collectives.collectives(PROGRAM, 8)
    assert [(c.kind, c.turns, c.devices) for c in found] == [
        ("reduce-scatter", 15, 4),
        ("all-gather", 3, 4),
        ("all-reduce", 1, 2),
        ("all-to-all", 1, 8),
    ]
    assert found[0].sent == 3 / 4 * (4 * 2 * 16 * 4)  # of the whole operand
    assert found[1].sent == 3 / 4 * (8 * 16 * 2)  # of the whole result
    assert found[2].sent == 2 * 1 / 2 * 400
    assert found[3].sent == 7 / 8 * (2 * 6 * 4 + 2 * 4)
    assert found[1].name == "jit(step)/gathered"


def test_collectives_of_a_program_that_xla_compiled():
    mesh = make_mesh({"data": 2})

    def step(x):
        def turn(carry, _):
            return carry + jax.lax.psum(jnp.sin(carry), "data"), None

        return jax.lax.scan(turn, x, None, length=3)[0]

    spec = PartitionSpec("data")
    cut = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    text = jax.jit(cut).lower(jnp.zeros((8, 16))).compile().as_text()
    [found] = collectives.collectives(text, 2)
    assert (found.kind, found.turns, found.devices) == ("all-reduce", 3, 2)
    assert found.sent == 2 * 1 / 2 * (4 * 16 * 4)


SCHEDULED = """HloModule jit_step, is_scheduled=true

%sliced (p0: f32[3,8], p1: s32[]) -> f32[8] {
  %p0 = f32[3,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %slice = f32[1,8]{1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,8}
  ROOT %row = f32[8]{0} bitcast(%slice)
}

%stacked (q0: bf16[3,8], q1: bf16[1,8], q2: s32[]) -> bf16[3,8] {
  %q0 = bf16[3,8]{1,0} parameter(0)
  %q1 = bf16[1,8]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %put = bf16[3,8]{1,0} dynamic-update-slice(%q0, %q1, %q2)
}

%turn (carry: (s32[], f32[3,8])) -> (s32[], f32[3,8]) {
  %carry = (s32[], f32[3,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %all = f32[3,8]{1,0} get-tuple-element(%carry), index=1
  %one = f32[8]{0} fusion(%all, %i), kind=kLoop, calls=%sliced
  %half = bf16[1,8]{1,0} convert(%one)
  %kept = bf16[3,8]{1,0} fusion(%half3, %half, %i), kind=kLoop, calls=%stacked
  %rule = f32[3,8]{1,0} custom-call(%all), metadata={op_name="jit(step)/pallas_call"}
}

ENTRY %main (x: f32[3,8]) -> f32[3,8] {
  %x = f32[3,8]{1,0} parameter(0)
  %while = (s32[], f32[3,8]{1,0}) while(%tuple), condition=%goes_on, body=%turn, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %product = f32[3,8]{1,0} multiply(%x, %x)
}
"""


def test_traffic_counts_slices_as_slices_and_no_kernel_of_ours():
    sliced = 8 * 4 + 4 + 8 * 4  # read, with where it starts; written
    converted = 8 * 4 + 8 * 2
    stacked = 8 * 2 + 4 + 8 * 2
    assert traffic(SCHEDULED) == 3 * (sliced + converted + stacked) + 3 * (3 * 8 * 4)


@pytest.fixture(scope="module")
def two_devices():
    """A tiny step, compiled for two CPU devices that share the parameters: figures and memory."""
    config = tiny_config(model__implementation="chunked", model__remat="full", mesh__fsdp=2)
    target = plan.find_target("h100", 2, "cpu")
    sizes = SIZES | {"fsdp": 2}
    rates = budget.datasheet_rates(target.chip, 2)
    compiled = []

    def kept(*given):
        compiled.append(compile_step(*given))
        return compiled[0]

    compile_step = plan.compile_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "compile_step", kept)
        figures = plan.plan(config, target, sizes, rates)
    return figures, compiled[0].memory_analysis()


def test_what_a_device_keeps_is_what_the_program_takes(two_devices):
    figures, memory = two_devices
    held = figures["bytes"]
    arguments = held["parameters"] + held["optimizer state"] + held["batch"]
    assert arguments == memory.argument_size_in_bytes
    peak = arguments + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert held["peak"] == peak - memory.alias_size_in_bytes
    assert held["gradients"] == held["parameters"] < 4 * figures["parameters"]


def test_a_sharded_step_sends_its_weights_and_gradients(two_devices):
    figures, _ = two_devices
    config = tiny_config(model__implementation="chunked", model__remat="full")
    model = make_model(config).config
    least = budget.estimated_sent_bytes(
        model, figures["parameters"], SIZES | {"fsdp": 2}, budget.work(config, model)
    )
    # CPU has no reduce-scatter: gradients are summed whole, and everything sent counts.
    assert sum(figures["bytes_sent"].values()) > 0.9 * sum(least.values())
    first = figures["collectives"][0]
    assert first["devices"] == 2
    assert first["sent"] * first["turns"] <= figures["bytes_sent"][first["kind"]]


def test_the_estimate_of_working_memory_is_of_the_right_size(two_devices):
    """It knows no fusion, and not that CPU keeps gradients whole: a factor of three either way."""
    figures, _ = two_devices
    config = tiny_config(model__implementation="chunked", model__remat="full")
    model = make_model(config).config
    working = budget.estimated_working_bytes(config, model, SIZES | {"fsdp": 2})
    assert 1 / 3 < working / figures["bytes"]["working memory"] < 3


def test_floors_are_the_work_over_the_rates():
    step = budget.Work(tokens=1000, turns=2, passes=3, model_flops=30.0, flops=40.0)
    memory = {"parameters": 10.0, "optimizer state": 20.0, "gradients": 10.0}
    rates = budget.Rates(flops=100.0, bandwidth=8.0, sending=2.0, source="")
    found = budget.least_seconds(
        step, memory | {"activations kept": 5.0}, {"all-gather": 30.0, "all-reduce": 10.0}, rates,
        weights=50.0, devices=4,
    )  # fmt: skip
    assert found == {"arithmetic": 100.0, "memory": (80 + 20 + 300) / 8, "sending": 20, "all": 100}


def planned(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.call(plan.main, ["plan", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_estimate_of_the_official_sizes(tmp_path, capsys):
    path = tmp_path / "new" / "plan.json"
    small = ["--config.batch_size=64", "--config.sequence_length=1024"]
    code, out, _ = planned(
        capsys, f"--config={CARVE}", f"--compare={CARVE.parent}/gdn2_1b3.py", "--compile=no",
        "--chip=h200", "--chips=4", "--price=2", "--tokens=1e9", f"--output={path}", *small,
    )  # fmt: skip
    assert code == 0
    assert "carve_1b3 beside gdn2_1b3 on 4 x NVIDIA H200" in out
    assert "nothing was compiled" in out
    models = json.loads(path.read_text())["models"]
    for name, parameters in (("carve_1b3", 1_367_004_960), ("gdn2_1b3", 1_450_096_416)):
        found = models[name]
        assert found["parameters"] == parameters
        assert found["mesh"] == SIZES | {"fsdp": 4}
        # Adam's moments; what fsdp does not cut is small.
        assert found["bytes"]["optimizer state"] == pytest.approx(2 * parameters, rel=0.1)
        assert found["bytes"]["peak"] < found["limit"]
        seconds = 2**16 * found["model_flops"] / (4 * 989e12 * 0.4)
        assert found["assumed"]["step_seconds"] == pytest.approx(seconds)
        days = 1e9 / 2**16 * seconds / 86400
        assert found["assumed"]["days"] == pytest.approx(days)
        assert found["assumed"]["cost"] == pytest.approx(days * 24 * 4 * 2)
        assert found["floors"]["all"] == pytest.approx(found["floors"]["arithmetic"])
        assert f"{found['bytes']['peak'] / 1e9:.2f}" in out
    ratio = models["carve_1b3"]["flops"] / models["gdn2_1b3"]["flops"]
    assert f"{ratio:.3f}" in out


def test_measured_rates_take_the_datasheets_place(tmp_path):
    path = tmp_path / "gpu.json"
    measured = {"flop_per_second": 7e14, "bytes_per_second": 3e12}
    path.write_text(json.dumps({"ceilings": measured, "devices": ["NVIDIA H100 80GB HBM3"]}))
    target = plan.find_target("h100", 8, "no")
    rates = plan.find_rates(str(path), target)
    assert rates[:3] == (7e14, 3e12, 450e9)
    assert rates.source.startswith("measured on NVIDIA H100")
    across = plan.find_rates(None, plan.find_target("h100", 16, "no"))
    assert across[:3] == (989e12, 3.35e12, 50e9)


@pytest.mark.parametrize("name", chips.CHIPS)
def test_every_chip_has_rates_and_something_to_compile_for(name):
    chip = chips.CHIPS[name]
    stands_in = chips.CHIPS[chip.compiles_as]
    assert stands_in.compiles_as == chip.compiles_as
    assert f"device_memory_size: {stands_in.memory}" in chips.target_config(stands_in)
    assert 1e14 < chip.flops < 1e16
    assert chip.network < chip.nvlink < chip.bandwidth < chip.flops


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chip=h10"], "no such chip is known; did you mean 'h100'?"),
        (["--chip=tpu", "--compile=no"], "allowed are a100-80, h100, h200, b200"),
        (["--chips=0", "--compile=no"], "there must be one at least"),
        (["--compile=no", "--mesh=fdsp=8"], "--mesh has no axis 'fdsp'; did you mean 'fsdp'?"),
        (["--compile=no", "--mesh=fsdp"], "give sizes as --mesh=fsdp=4,tensor=2"),
        (["--compile=no", "--mesh=fsdp=3"], "does not make up the 8 devices"),
        (["--compile=no", "--mesh=tensor=-1", "--chips=3"], "does not divide mlp_dim=6208"),
        (["--compile=no", "--config.batch_size=4"], "batch_size=4 is no multiple of"),
        (["--compile=no", "--rates=nowhere.json"], "holds no measured rates"),
        (["--compile=cpu"], "--xla_force_host_platform_device_count=8"),
        (["--compile=no", "--output"], "Missing value"),
    ],
)
def test_mistakes_are_told(arguments, words, capsys):
    code, _, error = planned(capsys, f"--config={CARVE}", *arguments)
    assert code == 2
    assert words in error


def test_machines_of_eight_are_full(capsys, monkeypatch):
    code, _, error = planned(capsys, f"--config={CARVE}", "--chips=12")
    assert code == 2
    assert "does not fill machines of 8" in error
    asked = []

    def no_plugin(**given: str) -> None:
        asked.append(given["topology"])
        raise NotImplementedError

    monkeypatch.setattr(ahead_of_time.topologies, "get_topology_desc", no_plugin)
    code, _, error = planned(capsys, f"--config={CARVE}", "--chips=16")
    assert (code, asked) == (2, ["1x2x8"])
    assert "pip install -e '.[aot]'" in error
    assert error.count("\n") == 1


def test_the_kernels_switch_is_put_back(monkeypatch):
    for before in ("interpret", None):
        monkeypatch.delenv(device.SWITCH, raising=False)
        if before:
            monkeypatch.setenv(device.SWITCH, before)
        with plan.kernels_for(plan.find_target("h100", 1, "no")):
            assert device.mode() == "compile"
        assert os.environ.get(device.SWITCH) == before


def test_sizes_are_the_flags_or_the_configs_or_all_for_parameters():
    config = tiny_config()
    assert plan.mesh_sizes(None, config, 8) == SIZES | {"fsdp": 8}
    assert plan.mesh_sizes("tensor=2,data=-1", config, 8) == SIZES | {"data": 4, "tensor": 2}
    config.mesh.update({"data": 2, "fsdp": -1})
    assert plan.mesh_sizes(None, config, 8) == SIZES | {"data": 2, "fsdp": 4}
    assert math.prod(plan.mesh_sizes(None, config, 6).values()) == 6


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the extra aot"
)
@pytest.mark.slow
def test_a_sharded_step_compiles_for_a_gpu_that_is_not_there(tmp_path):
    """In a process of its own: the kernels, inside shard_map, on two H100s."""
    path = tmp_path / "plan.json"
    sizes = {
        "model.vocab_size": 64, "model.d_model": 64, "model.layers": 1, "model.mlp_dim": 64,
        "model.num_heads": 2, "model.key_dim": 64, "model.value_dim": 64, "batch_size": 4,
        "sequence_length": 256, "loss_chunk": 256, "model.remat": "full",
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in sizes.items()]
    command = ["-m", "experiments.plan", "--config=configs/base.py", "--chips=2", *flags]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *command, f"--output={path}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Compiled for NVIDIA H100 80GB HBM3 with the rule 'pallas'" in done.stdout
    [model] = json.loads(path.read_text())["models"].values()
    assert 0 < model["bytes"]["peak"] < 1e8
    assert model["traffic"] > model["bytes"]["parameters"]
    assert model["bytes_sent"]["all-gather"] > 0
