"""What the memory command counts, compiled for this machine at tiny sizes."""

import json

import jax
import pytest

from experiments import cli, memory
from experiments.measuring.rule_calls import Shape
from experiments.planning import ahead_of_time
from experiments.planning.device_memory import measure
from pallas_kernels import device

SHAPE = Shape(2, 64, 2, 16)
MODEL = {
    "vocab_size": 32, "d_model": 8, "layers": 2, "mlp_dim": 16, "compute_dtype": "bfloat16",
}  # fmt: skip
HALF = 2 * SHAPE.elements  # bytes of a [B, T, H, K] in bfloat16
SCALARS = HALF // SHAPE.channels


@pytest.fixture
def here() -> ahead_of_time.Place:
    return ahead_of_time.on_device(jax.devices()[0])


@pytest.mark.slow
def test_the_rules_arguments_are_counted(here: ahead_of_time.Place) -> None:
    found = measure(here, ("rule",), ("chunked",), SHAPE, MODEL)["rule chunked"]
    shared = 6 * HALF  # query, key, value, the cotangent, and the log-decay in float32
    gate = 2 * 2 * SHAPE.heads * SHAPE.channels * 16  # content_down and content_up, of rank 16
    assert found["gdn2"]["arguments"] == shared + 2 * HALF
    assert found["carve"]["arguments"] == shared + HALF + SCALARS + gate


@pytest.mark.slow
def test_totals_count_what_is_donated_once(here: ahead_of_time.Place) -> None:
    programs = ("layer", "train_step", "train_step_remat")
    found = measure(here, programs, ("chunked",), SHAPE, MODEL)
    assert list(found) == [f"{program} chunked" for program in programs]
    for name, entry in found.items():
        for rule in ("gdn2", "carve"):
            bytes_ = entry[rule]
            held = bytes_["arguments"] + bytes_["outputs"] + bytes_["temporaries"]
            assert bytes_["total"] == held - bytes_["aliased"]
            assert (bytes_["aliased"] > 0) == name.startswith("train_step")
        carve, gdn2 = entry["carve"]["total"], entry["gdn2"]["total"]
        assert entry["ratio"] == pytest.approx(carve / gdn2, abs=1e-3)
    steps = [found[f"{program} chunked"]["carve"] for program in programs[1:]]
    assert steps[1]["temporaries"] < steps[0]["temporaries"]


def test_the_command_writes_what_it_prints(here, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(device.SWITCH, "gpu")  # the command sets another; this puts it back
    monkeypatch.setattr(memory, "absent_h100", lambda: here)
    monkeypatch.setattr(memory, "measure", lambda *given: {"given": given[1:]})
    path = tmp_path / "new" / "memory.json"
    argv = ["memory", "--programs=layer,rule", "--implementations=chunked", f"--output={path}"]
    assert cli.call(memory.main, argv) == 0
    record = json.loads(path.read_text())
    assert record["bytes"] == {"given": [["layer", "rule"], ["chunked"]]}
    assert device.mode() == "compile"
    assert f"written to {path}" in capsys.readouterr().out


def test_without_the_plugin_it_says_what_to_install(monkeypatch, capsys) -> None:
    def no_plugin(**_: str) -> None:
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(ahead_of_time.topologies, "get_topology_desc", no_plugin)
    assert cli.call(memory.main, ["memory"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"pip install jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt" in error


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--programs=ruel", "unknown 'ruel'; did you mean 'rule'"),
        ("--implementations=", "--implementations is empty; allowed are recurrent, chunked"),
    ],
)
def test_unknown_names_are_refused(flag, message, capsys) -> None:
    assert cli.call(memory.main, ["memory", flag]) == 2
    assert message in capsys.readouterr().err
