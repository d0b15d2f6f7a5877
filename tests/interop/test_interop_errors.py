import dataclasses
import re
import sys

import numpy as np
import pytest

from carve_jax.interop import InteropError, from_torch, to_torch
from carve_jax.mixers import MIXERS, SoftmaxAttention
from tests.interop.cases import (
    CONFIGS,
    GDN2,
    HEADS,
    KDA,
    ODD,
    OFFICIAL,
    SHAPES,
    official_shapes,
    random_weights,
)


def test_every_wrong_name_is_listed():
    weights = random_weights(SHAPES["layers"]["kda"]["shapes"])
    del weights["A_log"], weights["g_proj.1.bias"]
    weights["k_proj.bias"] = weights["extra"] = np.zeros(3, np.float32)
    weights["o_norm.weight"] = np.zeros((4, 2), np.float32)
    weights["dt_bias"] = weights["dt_bias"].astype(np.float64)
    with pytest.raises(InteropError) as raised:
        from_torch(weights, KDA)
    error = raised.value
    assert error.missing == ("A_log", "g_proj.1.bias")
    assert error.unexpected == ("extra", "k_proj.bias")
    assert error.misshapen == (
        "dt_bias is float64, expected float32 or bfloat16 or float16",
        "o_norm.weight [4, 2], expected [9]",
    )
    for name in (*error.missing, *error.unexpected, *error.misshapen):
        assert f"\n    {name}" in str(error)
    assert str(error).startswith("the weights do not fit KimiDeltaAttention in layout 'fla'")


def test_wrong_sizes_name_both_shapes():
    weights = random_weights(SHAPES["models"]["gdn"]["shapes"])
    config = dataclasses.replace(CONFIGS["gdn"], mlp_dim=41, layers=5)
    with pytest.raises(InteropError) as raised:
        from_torch(weights, config)
    assert "model.layers.3.mlp.down_proj.weight [24, 40], expected [24, 41]" in str(raised.value)
    assert "model.layers.4.attn.A_log" in raised.value.missing
    assert len(raised.value.misshapen) == 4 * 3


def test_other_options_of_the_same_layer():
    target = KDA.clone(layer=dataclasses.replace(KDA.layer, conv_bias=False))
    with pytest.raises(InteropError, match="their layers are of the right kind") as raised:
        from_torch(layer_weights("kda"), target)
    assert raised.value.unexpected == tuple(f"{name}_conv1d.bias" for name in "kqv")
    assert not raised.value.missing + raised.value.misshapen


def test_weights_like_nothing_known_get_no_hint():
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "g_proj", "g_norm_swish_gate")  # RetNet's
    weights = {f"{name}.weight": np.zeros((22, 22), np.float32) for name in names}
    with pytest.raises(InteropError, match=r"in layout 'fla'\.\n"):
        from_torch(weights, KDA)


def layer_weights(name):
    return random_weights(SHAPES["layers"][name]["shapes"])


@pytest.mark.parametrize(
    ("weights", "target", "layout", "words"),
    [
        (layer_weights("kda"), GDN2, "fla", "look like one layer, KimiDeltaAttention (our 'kda')"),
        (layer_weights("gdn2"), KDA, "fla", "look like one layer, GatedDeltaNet2 (our 'gdn2')"),
        (layer_weights("deltanet"), ODD["gdn"], "fla", "one layer, DeltaNet (our 'deltanet')"),
        (layer_weights("gdn"), CONFIGS["gdn"], "fla", "one layer, GatedDeltaNet (our 'gdn')"),
        (
            random_weights(SHAPES["models"]["kda"]["shapes"]),
            CONFIGS["gdn"],
            "fla",
            "a whole model in layout 'fla', with KimiDeltaAttention (our 'kda') in layers 0, 2; "
            "Attention (our 'attention') in layers 1, 3",
        ),
        (
            random_weights(official_shapes(OFFICIAL, packed=True)),
            OFFICIAL,
            "gdn2_official",
            "a whole model in layout 'gdn2_official_packed', with GatedDeltaNet2 (our 'gdn2')",
        ),
        (
            random_weights(SHAPES["models"]["kda"]["shapes"]),
            KDA,
            "fla",
            "not one layer's: they have no matrix q_proj.weight or attn.weight; they look like a "
            "whole model in layout 'fla'",
        ),
        (
            {f"module.{name}": value for name, value in layer_weights("kda").items()},
            CONFIGS["kda"],
            "fla",
            "all names begin with 'module.', which is to be removed",
        ),
    ],
)
def test_weights_of_another_architecture_are_recognised(weights, target, layout, words):
    with pytest.raises(InteropError, match=re.escape(words)) as raised:
        from_torch(weights, target, layout)
    assert raised.value.unexpected or raised.value.missing


@pytest.mark.parametrize(
    ("target", "layout", "words"),
    [
        (
            MIXERS["gdn2"](**HEADS),
            "fla",
            "where it has 'sigmoid'; it fits layout 'gdn2_official' or 'gdn2_official_packed'.",
        ),
        (GDN2, "gdn2_official", "gate_activation='sigmoid' where it has 'silu'"),
        (KDA, "gdn2_official", "erase='scalar', write='tied', content=False; it has GatedDelta"),
        (MIXERS["carve"](**HEADS), "fla", "no layer like GatedDeltaMixer with decay='channel'"),
        (MIXERS["gla"](**HEADS), "fla", "no layer like GatedDeltaMixer"),
        (MIXERS["kda"](**HEADS, rope=True), "fla", "rope=True where it has False"),
        (MIXERS["kda"](**HEADS, gates_per="key"), "fla", "gates_per='key' where it has 'value'"),
        (MIXERS["deltanet"](**HEADS), "fla", "2 key heads to 4 value heads"),
        (SoftmaxAttention(num_heads=2, head_dim=4), "fla", "make up 8 channels of 24"),
        (KDA, "hf", "layout='hf'; choose one of fla, gdn2_official, gdn2_official_packed"),
    ],
)
def test_targets_that_a_layout_lacks(target, layout, words):
    weights = {"q_proj.weight": np.zeros((8, 24), np.float32)}
    with pytest.raises(InteropError, match=re.escape(words)):
        from_torch(weights, target, layout)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"model": {"q_proj.weight": 1}}, "checkpoint['model']"),
        ({"step": 3}, "'step' is a int; expected an array"),
        ([], "the weights are a list; give a state dict"),
    ],
)
def test_things_that_are_no_state_dict(weights, words):
    with pytest.raises(InteropError, match=re.escape(words)):
        from_torch(weights, KDA)


def test_parameters_that_are_not_the_targets():
    params = from_torch(layer_weights("kda"), KDA)
    with pytest.raises(InteropError, match="w_proj/kernel") as raised:
        to_torch(params, GDN2)
    assert "w_proj/kernel" in raised.value.missing
    with pytest.raises(InteropError, match="dtype=int32; choose one of float32"):
        to_torch(params, KDA, dtype="int32")
    with pytest.raises(InteropError, match="no matrix q_proj/kernel"):
        to_torch({}, KDA)


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"")
    for path, words in (
        ("model.safetensors", "there is no file"),
        ("model.pth", "torch.load\\(path, weights_only=True\\)"),
        ("", "holds no .safetensors file"),
    ):
        with pytest.raises(InteropError, match=words):
            from_torch(tmp_path / path, KDA)


def test_without_safetensors_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'carve_jax\[torch\]'"):
        from_torch(path, KDA)
