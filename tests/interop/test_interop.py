import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from carve_jax.interop import LAYOUTS, InteropError, from_torch, save_safetensors, to_torch
from carve_jax.interop import weights as weights_module
from carve_jax.model import LanguageModel
from tests.interop.cases import (
    CONFIGS,
    KDA,
    MODELS,
    OFFICIAL,
    SHAPES,
    TARGETS,
    official_shapes,
    random_weights,
)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_array_equal(left[name], right[name], strict=True, err_msg=name)


@pytest.mark.parametrize("name", TARGETS)
def test_round_trips_are_lossless(name):
    target, layout, shapes = TARGETS[name]
    weights = random_weights(shapes)
    params = from_torch(weights, target, layout)
    back = to_torch(params, target, layout)
    assert_same(back, weights)
    again = from_torch(back, target, layout)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    for array in back.values():
        assert array.flags.c_contiguous
        assert array.flags.owndata


@pytest.mark.parametrize("name", MODELS)
def test_a_model_gets_the_parameters_of_its_init(name):
    config, layout, shapes = MODELS[name]
    params = from_torch(random_weights(shapes), LanguageModel(config), layout)
    expected = jax.eval_shape(
        LanguageModel(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    )["params"]
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for own, other in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert (own.shape, own.dtype) == (other.shape, other.dtype)


def test_each_layer_goes_to_its_place_in_the_pattern():
    weights = random_weights(official_shapes(OFFICIAL))
    params = from_torch(weights, OFFICIAL, "gdn2_official")
    for index in range(4):
        repeat, position = divmod(index, 2)
        block = params["blocks"][f"layer_{position}_{OFFICIAL.pattern[position]}"]
        prefix = f"transformer.h.{index}."
        np.testing.assert_array_equal(
            block["mlp"]["up_proj"]["kernel"][repeat], weights[prefix + "mlp.swiglu.w2.weight"].T
        )
        np.testing.assert_array_equal(
            block["mixer_norm"]["scale"][repeat], weights[prefix + "norm_1.weight"]
        )
    fused = weights["transformer.h.3.attn.attn.weight"]  # [q q k v] twice, of 6 rows each
    mixer = params["blocks"]["layer_1_swa"]["mixer"]
    key = np.concatenate([fused[12:18], fused[36:42]])
    np.testing.assert_array_equal(mixer["k_proj"]["kernel"][1], key.T)


def test_the_packed_mlp_is_gate_then_up():
    weights = random_weights(official_shapes(OFFICIAL))
    packed = dict(weights)
    for index in range(OFFICIAL.layers):
        prefix = f"transformer.h.{index}.mlp.swiglu."
        both = [packed.pop(f"{prefix}{name}.weight") for name in ("w1", "w2")]
        packed[f"{prefix}w12.weight"] = np.concatenate(both)
    jax.tree.map(
        np.testing.assert_array_equal,
        from_torch(packed, OFFICIAL, "gdn2_official_packed"),
        from_torch(weights, OFFICIAL, "gdn2_official"),
    )


def test_tied_embeddings():
    config = dataclasses.replace(CONFIGS["transformer"], tie_embeddings=True)
    weights = random_weights(SHAPES["models"]["transformer"]["shapes"])
    with pytest.raises(InteropError, match="differs from the embedding"):
        from_torch(weights, config)
    weights["lm_head.weight"] = weights["model.embeddings.weight"]
    params = from_torch(weights, config)
    assert "head" not in params
    assert_same(to_torch(params, config), weights)
    del weights["lm_head.weight"]
    jax.tree.map(np.testing.assert_array_equal, from_torch(weights, config), params)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_widened_and_comes_back(dtype):
    weights = random_weights(SHAPES["layers"]["kda"]["shapes"], dtype)
    params = from_torch(weights, KDA)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert_same(to_torch(params, KDA, dtype=dtype), weights)


class FakeTensor:
    """What is asked of a PyTorch tensor, whose bfloat16 NumPy cannot take."""

    def __init__(self, values, dtype="torch.bfloat16"):
        self.values, self.dtype, self.shape = values, dtype, values.shape

    def detach(self):
        return self

    cpu = detach

    def float(self):
        return FakeTensor(self.values, "torch.float32")

    def numpy(self):
        assert self.dtype == "torch.float32", "NumPy has no bfloat16"
        return self.values


def test_tensors_of_pytorch_are_copied():
    weights = random_weights(SHAPES["layers"]["kda"]["shapes"])
    params = from_torch({name: FakeTensor(value) for name, value in weights.items()}, KDA)
    before = to_torch(params, KDA)
    assert_same(before, weights)
    for value in weights.values():
        value *= 2
    assert_same(to_torch(params, KDA), before)


def test_tensors_of_pytorch_itself():
    torch = pytest.importorskip("torch")
    weights = random_weights(SHAPES["layers"]["kda"]["shapes"], ml_dtypes.bfloat16)
    tensors = {
        name: torch.tensor(value.astype(np.float32), requires_grad=True).to(torch.bfloat16)
        for name, value in weights.items()
    }
    assert_same(to_torch(from_torch(tensors, KDA), KDA, dtype="bfloat16"), weights)


def test_safetensors_files_and_folders(tmp_path):
    pytest.importorskip("safetensors")
    from safetensors.numpy import load_file, save_file

    weights = random_weights(SHAPES["layers"]["kda"]["shapes"], ml_dtypes.bfloat16)
    params = from_torch(weights, KDA)
    path = tmp_path / "one" / "kda.safetensors"
    path.parent.mkdir()
    save_safetensors(path, params, KDA, dtype="bfloat16")
    assert_same(load_file(path), weights)
    assert b'"format":"pt"' in path.read_bytes()[:200]
    jax.tree.map(np.testing.assert_array_equal, from_torch(str(path), KDA), params)
    names, folder = sorted(weights), tmp_path / "two"
    folder.mkdir()
    for part, own in enumerate((names[:5], names[5:])):
        save_file({name: weights[name] for name in own}, folder / f"{part}.safetensors")
    jax.tree.map(np.testing.assert_array_equal, from_torch(folder, KDA), params)
    save_file({names[0]: weights[names[0]]}, folder / "again.safetensors")
    with pytest.raises(InteropError, match="is in two files"):
        from_torch(folder, KDA)
    path.write_bytes(b"no such format")
    with pytest.raises(InteropError, match="cannot be read as safetensors"):
        from_torch(path, KDA)


def test_it_comes_with_the_package_and_without_pytorch_or_safetensors():
    program = (
        "import sys, carve_jax; carve_jax.interop.from_torch;"
        "print({'torch', 'safetensors'} & sys.modules.keys() or 0)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "0"


def test_dtypes_of_the_safetensors_format_are_known():
    assert set(weights_module._SAFETENSORS_DTYPES.values()) == set(weights_module.READABLE)
    assert set(LAYOUTS) == {"fla", "gdn2_official", "gdn2_official_packed"}
