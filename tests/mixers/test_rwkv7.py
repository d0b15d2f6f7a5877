"""RWKV-7's layer is the published recurrence written out, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.mixers import MIXERS
from tests.mixers.parameters import random_normal, random_parameters
from tests.mixers.published import sigmoid, unit

BATCH, LENGTH, HEADS, K, V = 2, 20, 2, 8, 12
WIDTH = HEADS * V
SIZES = {"num_heads": HEADS, "key_dim": K, "value_dim": V}


def written_out(params, x, groups):
    """The layer of arXiv 2503.14456, a token and a head at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(x, np.float64)
    before = np.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    m = {name: x + (before - x) * p[f"x_{name}"] for name in "rwkvag"}

    def by_head(a):
        return np.repeat(a.reshape(*a.shape[:-1], groups, K), HEADS // groups, axis=-2)

    r, k = (by_head(m[name] @ p[f"{name}_proj"]["kernel"]) for name in "rk")
    v = (m["v"] @ p["v_proj"]["kernel"]).reshape(BATCH, LENGTH, HEADS, V)
    down = {name: m[name] @ p[f"{name}_down"]["kernel"] for name in "wag"}
    w = by_head(np.tanh(down["w"]) @ p["w_up"]["kernel"] + p["w_up"]["bias"])
    w = np.exp(-np.exp(-0.5) * sigmoid(w))
    a = sigmoid(by_head(down["a"] @ p["a_up"]["kernel"] + p["a_up"]["bias"]))
    removal = unit(k * by_head(p["k_k"]))
    k = k * (1 + (a - 1) * by_head(p["k_a"]))
    o = np.zeros((BATCH, LENGTH, HEADS, V))
    for i, h in np.ndindex(BATCH, HEADS):
        state = np.zeros((V, K))  # as the paper has it: values by keys
        for t in range(LENGTH):
            kappa, strength = removal[i, t, h], a[i, t, h]
            transition = np.diag(w[i, t, h]) - np.outer(kappa, strength * kappa)
            state = state @ transition + np.outer(v[i, t, h], k[i, t, h])
            o[i, t, h] = state @ r[i, t, h]
    o = (o - o.mean(-1, keepdims=True)) / np.sqrt(o.var(-1, keepdims=True) + V * 1e-5)
    o = o.reshape(BATCH, LENGTH, -1) * p["o_norm"] + p["o_norm_bias"]
    bonus = (r * by_head(p["r_k"]) * k).sum(-1, keepdims=True) * v
    gate = sigmoid(down["g"]) @ p["g_up"]["kernel"]
    return ((o + bonus.reshape(o.shape)) * gate) @ p["o_proj"]["kernel"]


@pytest.mark.parametrize("implementation", ["recurrent", "chunked"])
@pytest.mark.parametrize("groups", [2, 1])
def test_the_layer_is_the_published_one_written_out(groups, implementation):
    mixer = MIXERS["rwkv7"](**SIZES, num_key_heads=groups, implementation=implementation)
    x = random_normal(BATCH, LENGTH, WIDTH)
    params = random_parameters(mixer, jnp.zeros((1, 1, WIDTH)))
    y, _ = jax.jit(mixer.apply)({"params": params}, x)
    expected = written_out(params, x, groups)
    np.testing.assert_allclose(y, expected, atol=2e-5 * np.abs(expected).max())


def test_a_removal_that_is_all_but_shut_has_finite_gradients():
    mixer = MIXERS["rwkv7"](**SIZES, implementation="recurrent")
    x = random_normal(BATCH, LENGTH, WIDTH)
    params = random_parameters(mixer, jnp.zeros((1, 1, WIDTH)))
    params["a_up"]["bias"] -= 60.0

    def total(params):
        return jnp.sum(jnp.sin(mixer.apply({"params": params}, x)[0]))

    value, gradients = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
