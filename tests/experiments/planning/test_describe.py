"""Configs of the official sizes are what they say, and `--describe` prints it."""

import importlib.util
from pathlib import Path

import pytest

from carve_jax import accounting
from carve_jax.accounting import costs, parameter_shapes
from carve_jax.mixers import MIXERS
from carve_jax.model import count_parameters
from carve_jax.training.settings import make_model_config
from experiments import cli, train
from experiments.planning.describe import are_twins

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
OFFICIAL = sorted(
    path.stem for size in ("1b3", "300m", "100m") for path in CONFIGS.glob(f"*_{size}.py")
)


def load(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n.startswith("carve") or "1b3" in n else pytest.mark.slow)
        for n in OFFICIAL
    ],
)
def test_sizes_are_those_of_the_docstring(name):
    module = load(name)
    config = module.get_config()
    model = make_model_config(config)
    counts = count_parameters(parameter_shapes(model))
    assert f"{counts['total']:,}" in module.__doc__
    assert f"configs/{name}.py" in module.__doc__
    assert config.batch_size * config.sequence_length == 2**19
    if name.endswith("_1b3"):
        reference = 1_447_772_688 if "swa" in model.pattern else 1_450_096_416
        # CARVE has the shape of GDN-2, as its paper compares them; the others its parameters.
        assert name == "carve_1b3" or abs(counts["total"] / reference - 1) < 0.003
        state = model.num_heads * model.key_dim * model.value_dim
        sizes = {MIXERS[mixer].state_size(model) for mixer in model.pattern}
        assert state == 262_144 or sizes == {0}


@pytest.mark.parametrize(
    ("name", "published"), [("gdn2_1b3", 1_302_638_112), ("gdn2_swa_1b3", 1_300_314_384)]
)
def test_official_counts_are_those_of_the_official_code(name, published):
    """It counts neither the embedding, nor the head, nor the last norm."""
    model = make_model_config(load(name).get_config())
    counts = count_parameters(parameter_shapes(model))
    assert counts["total"] - counts["embedding"] - counts["head"] - model.d_model == published


def described(capsys, *arguments):
    code = cli.call(train.main, ["train", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow  # always: any two, and the sizes of both
def test_describe_sets_carve_beside_gdn2(capsys):
    code, out, _ = described(capsys, f"--config={CONFIGS}/carve_1b3.py", "--describe")
    assert code == 0
    rows = {line.split("  ")[0]: line.split()[-3:] for line in out.splitlines()}
    assert rows["parameters, mixer"] == ["447,089,184", "530,180,640", "0.843"]
    assert rows["parameters, total"] == ["1,367,004,960", "1,450,096,416", "0.943"]
    assert rows["recurrent state, floats per layer"] == ["262,144", "262,144", "1.000"]
    assert {"training FLOPs per token", "activation bytes per token"} <= rows.keys()
    assert "15.7% fewer" in out
    assert "18.7% fewer without their output projection" in out


@pytest.fixture
def untraced(monkeypatch):
    """Counts no activations, which takes the most time."""
    monkeypatch.setattr(accounting, "activation_bytes", lambda *given: 0.0)


@pytest.mark.usefixtures("untraced")
def test_describe_compares_any_two_and_takes_overrides(capsys):
    arguments = [f"--config={CONFIGS}/quickstart.py", "--describe", "--config.model.layers=4"]
    code, out, _ = described(capsys, *arguments, f"--compare={CONFIGS}/mqar.py")
    assert code == 0
    assert "4 x carve" in out
    assert "2 x carve" in out
    assert "fewer" not in out


@pytest.mark.usefixtures("untraced")
def test_a_model_without_a_twin_stands_alone(capsys):
    arguments = (f"--config={CONFIGS}/quickstart.py", "--config.model.pattern=('gla',)")
    code, out, _ = described(capsys, *arguments, "--describe")
    assert code == 0
    expected = make_model_config(load("quickstart").get_config())
    assert "ratio" not in out
    assert f"{costs(expected, context=256).parameters['head']:,}" in out


@pytest.mark.parametrize(
    ("first", "second", "twins"),
    [
        (("carve",), ("gdn2",), True),
        (("gdn2", "swa"), ("carve", "swa"), True),
        (("carve",), ("carve", "swa"), False),
        (("carve",), ("attention",), False),
        (("mamba2",), ("carve",), False),
        (("attention",), ("attention",), False),
        (("carve",), ("carve",), False),
        (("carve", "gdn2"), ("gdn2", "carve"), False),
    ],
)
def test_only_twins_are_said_to_have_fewer_parameters(first, second, twins):
    assert are_twins(first, second) == twins
    assert are_twins(second, first) == twins


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--compare=configs/mqar.py"], "--compare is for --describe"),
        (["--describe", "--compare=nowhere.py"], "no such file"),
        (["--describe", "--config.model.pattern=('carve','swa','swa')"], "no multiple of the"),
    ],
)
def test_mistakes_are_told(capsys, arguments, words):
    code, _, err = described(capsys, f"--config={CONFIGS}/quickstart.py", *arguments)
    assert code == 2
    assert words in err
