"""Costs are counted right: against XLA's own count, and against what they must be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.accounting import activation_bytes, costs, forward_flops, state_sizes
from carve_jax.config import LMConfig
from carve_jax.model import LanguageModel
from tests.mixers.parameters import random_parameters

CONFIG = LMConfig(
    vocab_size=64, d_model=128, layers=2, mlp_dim=256, num_heads=2, implementation="recurrent"
)


@pytest.mark.parametrize(
    "pattern",
    [("carve",), pytest.param(("mamba3_mimo",), marks=pytest.mark.slow), ("gla", "swa")],
    ids="-".join,
)
def test_flops_are_xlas(pattern):
    config = dataclasses.replace(
        CONFIG, pattern=pattern, attention_kv_heads=1, scan_layers=False, window=1
    )
    model = LanguageModel(config)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    compiled = (
        jax.jit(lambda p, t: model.apply({"params": p}, t)[0]).lower(params, tokens).compile()
    )
    counted = sum(forward_flops(config, 256).values())
    assert 0.9 < counted / compiled.cost_analysis()["flops"] < 1.02


def test_attention_sees_the_mean_over_a_causal_row():
    def attention(**changes):
        config = dataclasses.replace(CONFIG, pattern=("swa",), **changes)
        return forward_flops(config, 512)["attention"]

    seen = np.minimum(np.arange(512) + 1, 100).mean()
    assert attention(window=100) == pytest.approx(2 * 4 * 128 * seen)
    assert attention(window=9999) == pytest.approx(2 * 4 * 128 * 256.5)


def test_activations_are_the_residuals_of_the_blocks():
    config = dataclasses.replace(CONFIG, pattern=("attention",), layers=1)
    model = LanguageModel(config)
    params = random_parameters(model, jnp.zeros((1, 1), jnp.int32))

    def kept(length):
        tokens = jnp.zeros((1, length), jnp.int32)
        _, pullback = jax.vjp(
            lambda p: model.apply({"params": p}, tokens, method="hidden")[0], params
        )
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pullback))

    found = activation_bytes(config, 256)
    # What is kept at one token is next to nothing but parameters.
    assert found == pytest.approx((kept(256) - kept(1)) / 256, rel=0.02)


@pytest.mark.parametrize("mixer", ["gla", "carve"])
@pytest.mark.slow  # always: that they are the residuals of the blocks
def test_activations_are_linear_but_for_attention_and_shrink_with_rematerialisation(mixer):
    recurrent = dataclasses.replace(CONFIG, pattern=(mixer,))
    plain = activation_bytes(recurrent, 1024)
    assert activation_bytes(recurrent, 256) == pytest.approx(plain, rel=0.01)
    full = dataclasses.replace(recurrent, remat="full")
    assert activation_bytes(full, 256) < plain / 4
    attention = dataclasses.replace(CONFIG, pattern=("attention",))
    assert activation_bytes(attention, 1024) > 1.5 * activation_bytes(attention, 256)


def test_state_and_caches():
    found = costs(CONFIG, context=256, cache_lengths=(10, 1000))
    assert found.state == state_sizes(CONFIG) == {"carve": 2 * 64 * 64}
    assert found.cache_bytes[10] == found.cache_bytes[1000]
    assert found.train_flops == 3 * sum(found.forward_flops.values())
    grown = dataclasses.replace(CONFIG, pattern=("attention",))
    sizes = costs(grown, context=256, cache_lengths=(10, 1000)).cache_bytes
    assert sizes[1000] - sizes[10] == 2 * 990 * 2 * 128 * 4


def test_refuses_an_odd_context():
    with pytest.raises(ValueError, match="context=100; it must be a multiple of 256"):
        costs(CONFIG, context=100)
