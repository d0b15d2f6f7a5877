"""The plan's figures: held against compiled programs, and against sums done by hand."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from carve_jax.sharding import AXES
from carve_jax.training.run import make_model
from experiments import cli, plan
from experiments.planning import ahead_of_time, budget, chips, run_plan
from experiments.planning.rates import Rates, datasheet_rates, find_rates
from experiments.planning.target import find_target, kernels_for, mesh_sizes
from pallas_kernels import device
from tests.training.helpers import tiny_config

ROOT = Path(__file__).resolve().parents[3]
CARVE = ROOT / "configs" / "carve_1b3.py"
SIZES = dict.fromkeys(AXES, 1)
SMALL = {"model__implementation": "chunked", "model__remat": "full"}


# By night: a step compiled for two devices. `plan` of the official sizes runs by day, uncompiled.
@pytest.fixture(
    scope="module", params=[pytest.param(p, marks=pytest.mark.slow) for p in ("gla", "carve")]
)
def two_devices(request):
    """A tiny step, compiled for two CPU devices that share the parameters: figures and memory."""
    small = SMALL | {"model__pattern": (request.param,)}
    config = tiny_config(**small, mesh__fsdp=2)
    target = find_target("h100", 2, "cpu")
    sizes = SIZES | {"fsdp": 2}
    rates = datasheet_rates(target.chip, 2)
    compiled = []

    def kept(*given):
        compiled.append(compile_step(*given))
        return compiled[0]

    compile_step = run_plan.compile_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_plan, "compile_step", kept)
        figures = run_plan.plan_run(config, target, sizes, rates)
    return figures, compiled[0].memory_analysis(), small


def test_what_a_device_keeps_is_what_the_program_takes(two_devices):
    figures, memory, _ = two_devices
    held = figures["bytes"]
    arguments = held["parameters"] + held["optimizer state"] + held["batch"]
    assert arguments == memory.argument_size_in_bytes
    peak = arguments + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert held["peak"] == peak - memory.alias_size_in_bytes
    assert held["gradients"] == held["parameters"] < 4 * figures["parameters"]


def test_a_sharded_step_sends_its_weights_and_gradients(two_devices):
    figures, _, small = two_devices
    config = tiny_config(**small)
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
    figures, _, small = two_devices
    config = tiny_config(**small)
    model = make_model(config).config
    working = budget.estimated_working_bytes(config, model, SIZES | {"fsdp": 2})
    assert 1 / 3 < working / figures["bytes"]["working memory"] < 3


def test_floors_are_the_work_over_the_rates():
    step = budget.Work(tokens=1000, turns=2, passes=3, model_flops=30.0, flops=40.0)
    memory = {"parameters": 10.0, "optimizer state": 20.0, "gradients": 10.0}
    rates = Rates(flops=100.0, bandwidth=8.0, sending=2.0, source="")
    found = budget.least_seconds(
        step, memory | {"activations kept": 5.0}, {"all-gather": 30.0, "all-reduce": 10.0}, rates,
        weights=50.0, devices=4,
    )  # fmt: skip
    assert found == {"arithmetic": 100.0, "memory": (80 + 20 + 300) / 8, "sending": 20, "all": 100}


def planned(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.call(plan.main, ["plan", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_estimate_of_the_official_sizes(tmp_path, capsys, monkeypatch):
    # Tracing takes the most time; tests/model counts activations.
    monkeypatch.setattr(budget, "activation_bytes", lambda *given: 1e5)
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
    target = find_target("h100", 8, "no")
    rates = find_rates(str(path), target.chip, 8)
    assert rates[:3] == (7e14, 3e12, 450e9)
    assert rates.source.startswith("measured on NVIDIA H100")
    across = find_rates(None, target.chip, 16)
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
        with kernels_for(find_target("h100", 1, "no")):
            assert device.mode() == "compile"
        assert os.environ.get(device.SWITCH) == before


def test_sizes_are_the_flags_or_the_configs_or_all_for_parameters():
    config = tiny_config()
    assert mesh_sizes(None, config, 8) == SIZES | {"fsdp": 8}
    assert mesh_sizes("tensor=2,data=-1", config, 8) == SIZES | {"data": 4, "tensor": 2}
    config.mesh.update({"data": 2, "fsdp": -1})
    assert mesh_sizes(None, config, 8) == SIZES | {"data": 2, "fsdp": 4}
    assert math.prod(mesh_sizes(None, config, 6).values()) == 6


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
