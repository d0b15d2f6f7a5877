"""Our mixers with PyTorch's weights give what flash-linear-attention's layers give.

The fixtures are made by `make_fixtures.py`: the layers' own code, on a CPU, in float32.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from carve_jax.interop import from_torch
from carve_jax.mixers import MIXERS, SoftmaxAttention
from carve_jax.model import LanguageModel, LMConfig

FOLDER = Path(__file__).parent / "fixtures"
CASES = {
    "gdn2": ("gdn2", {"gate_activation": "sigmoid"}),
    "gdn2_grouped": ("gdn2", {"gate_activation": "sigmoid"}),
    "gdn2_no_conv": ("gdn2", {"gate_activation": "sigmoid"}),
    "gdn2_official": ("gdn2", {}),
    "kda": ("kda", {}),
    "kda_grouped": ("kda", {}),
    "kda_safe": ("kda", {"decay_form": "bounded"}),
    "gdn": ("gdn", {}),
    "gdn_grouped": ("gdn", {"gate_activation": "sigmoid"}),
    "deltanet": ("deltanet", {}),
    "deltanet_gate": ("deltanet", {"output_gate": "full"}),
}


def load(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        weights = {
            key.removeprefix("weights/"): file[key] for key in file if key.startswith("weights/")
        }
        return weights, file["x"], file["y"], json.loads(str(file["about"]))["options"]


def mixer_of(name, options, **changes):
    """Our mixer of a case, from the options its layer was made with."""
    preset, own = CASES[name]
    fields = {
        "num_heads": options.get("num_v_heads", 2),
        "num_key_heads": 2,
        "key_dim": 8,
        "value_dim": 16,
        "short_conv": options.get("use_short_conv", True),
        "conv_bias": options.get("conv_bias", False),
        "negative_eigenvalues": options.get("allow_neg_eigval", False),
        "chunk_size": 16,
        "implementation": "recurrent",
    }
    return MIXERS[preset](**fields | own | changes)


def layout_of(name):
    return "gdn2_official" if name == "gdn2_official" else "fla"


def relative_error(mixer, params, x, expected):
    y, _ = jax.jit(mixer.apply)({"params": params}, x)
    return np.abs(y - expected).max() / np.abs(expected).max()


def test_every_fixture_is_compared():
    assert {path.stem for path in FOLDER.glob("*.npz")} == {*CASES, "model_kda"}


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        *((name, "recurrent") for name in CASES),
        *(
            pytest.param(name, "chunked", marks=() if name == "gdn2_official" else pytest.mark.slow)
            for name in CASES
        ),
    ],
)
def test_a_layer_gives_what_it_gives_in_pytorch(name, implementation):
    weights, x, y, options = load(name)
    mixer = mixer_of(name, options, implementation=implementation)
    params = from_torch(weights, mixer, layout_of(name))
    assert relative_error(mixer, params, x, y) < 1e-5


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gdn2_official", {"gate_activation": "sigmoid"}),
        ("gdn2_grouped", {"negative_eigenvalues": False}),
        ("kda_safe", {"decay_form": "softplus"}),
        ("deltanet", {"activation": "elu_plus_one"}),
    ],
)
def test_an_option_that_leaves_no_trace_in_the_weights_changes_the_output(name, wrong):
    weights, x, y, options = load(name)
    params = from_torch(weights, mixer_of(name, options), layout_of(name))
    mixer = mixer_of(name, options, **wrong)
    assert relative_error(mixer, params, x, y) > 1e-2


def test_a_model_gives_the_logits_it_gives_in_pytorch():
    weights, tokens, logits, options = load("model_kda")
    attention = options["attn"]
    config = LMConfig(
        vocab_size=options["vocab_size"],
        d_model=options["hidden_size"],
        layers=options["num_hidden_layers"],
        pattern=("kda", "swa"),
        mlp_dim=options["intermediate_size"],
        num_heads=2,
        key_dim=8,
        value_dim=16,
        attention_heads=attention["num_heads"],
        attention_kv_heads=attention["num_kv_heads"],
        window=attention["window_size"],
        norm_eps=1e-6,
        implementation="recurrent",
    )
    model = LanguageModel(config)
    assert relative_error(model, from_torch(weights, config), tokens, logits) < 1e-5


def official_attention(weights, x, heads, groups):
    """lit_gpt's causal attention in NumPy: fused groups [q … q k v] and half-split RoPE."""
    batch, length, width = x.shape
    size = width // heads
    fused = (x @ weights["attn.weight"].T).reshape(batch, length, groups, heads // groups + 2, size)
    angles = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    cos, sin = (f(angles)[None, :, None, None] for f in (np.cos, np.sin))

    def turned(part):
        left, right = np.split(part, 2, axis=-1)
        return np.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)

    query, key, value = turned(fused[..., :-2, :]), turned(fused[..., -2:-1, :]), fused[..., -1:, :]
    scores = np.einsum("btgqe,bsgqe->bgqts", query, np.broadcast_to(key, query.shape))
    scores = scores / np.sqrt(size) + np.where(np.tri(length), 0, -np.inf)
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    mixed = np.einsum("bgqts,bsgqe->btgqe", weight, np.broadcast_to(value, query.shape))
    return mixed.reshape(batch, length, width) @ weights["proj.weight"].T


def test_the_official_fused_attention():
    random, heads, groups, width = np.random.default_rng(0), 4, 2, 16
    shapes = {"attn.weight": ((heads + 2 * groups) * 4, width), "proj.weight": (width, width)}
    weights = {
        name: random.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()
    }
    x = random.normal(size=(2, 7, width)).astype(np.float32)
    mixer = SoftmaxAttention(num_heads=heads, kv_heads=groups, head_dim=4)
    params = from_torch(weights, mixer, "gdn2_official")
    assert relative_error(mixer, params, x, official_attention(weights, x, heads, groups)) < 1e-5
