"""Flax NNX users have the modules through Flax's own bridge: same numbers, gradients and caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from carve_jax.mixers import MIXERS
from carve_jax.model import LanguageModel, LMConfig
from tests.mixers.parameters import random_normal, random_tokens

CONFIG = LMConfig(
    vocab_size=40,
    d_model=32,
    layers=2,
    pattern=("carve", "swa"),
    mlp_dim=48,
    num_heads=2,
    key_dim=8,
    value_dim=16,
    gates={"gate_chunk": 8},
    implementation="recurrent",
)


def params_of(module):
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


@pytest.mark.slow  # always: a model that trains through the bridge, in tests/test_examples.py
def test_a_language_model_is_an_nnx_module():
    linen, tokens = LanguageModel(CONFIG), random_tokens(2, 12, below=40)
    model = nnx.bridge.lazy_init(nnx.bridge.ToNNX(linen, rngs=nnx.Rngs(0)), tokens)
    params = params_of(model)
    reference = jax.eval_shape(linen.init, jax.random.key(0), tokens)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, dict(reference))

    @nnx.jit
    def loss_and_gradients(model, tokens):
        return nnx.value_and_grad(lambda m: jnp.sin(m(tokens)[0]).sum())(model)

    def linen_loss(params):
        return jnp.sin(linen.apply({"params": params}, tokens)[0]).sum()

    loss, gradients = loss_and_gradients(model, tokens)
    expected, expected_gradients = jax.jit(jax.value_and_grad(linen_loss))(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    got = nnx.to_pure_dict(gradients)
    for path, leaf in jax.tree.leaves_with_path(expected_gradients):
        found = got
        for key in path:
            found = found[key.key]
        np.testing.assert_allclose(found, leaf, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # always: as above
def test_a_mixer_streams_through_its_cache():
    sizes = {"num_heads": 2, "key_dim": 8, "value_dim": 8, "implementation": "recurrent"}
    mixer, x = MIXERS["mamba3"](**sizes), random_normal(2, 6, 16)
    module = nnx.bridge.lazy_init(nnx.bridge.ToNNX(mixer, rngs=nnx.Rngs(0)), x)

    @nnx.jit
    def run(module, x, cache=None):
        return module(x, cache)

    whole, _ = run(module, x)
    first, cache = run(module, x[:, :4], mixer.init_cache(2, 6))
    second, _ = run(module, x[:, 4:], cache)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-5)
