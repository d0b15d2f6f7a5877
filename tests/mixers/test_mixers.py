"""What every mixer promises: one interface, streaming, documents, causality, dtypes, gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.mixers import FAMILY, MIXERS, SoftmaxAttention
from carve_jax.mixers.softmax import Softmax
from tests.mixers.parameters import random_normal, random_parameters

BATCH, LENGTH, WIDTH, HEADS = 2, 24, 32, 2


def make(name: str, **changes: Any):
    if not isinstance(MIXERS[name], Softmax):
        # The rules are compared with one another in tests/ops; this one compiles fastest.
        sizes = {"num_heads": HEADS, "key_dim": 8, "value_dim": 16, "implementation": "recurrent"}
        content = {"gate_chunk": 8, "content_rank": 4} if name in FAMILY else {}
        return MIXERS[name](**sizes | content | {"chunk_size": 16} | changes)
    window = {"window": 5} if name == "swa" else {}
    return MIXERS[name](**{"num_heads": HEADS, "head_dim": 16} | window | changes)


def inputs(seed: int = 0):
    return random_normal(BATCH, LENGTH, WIDTH, seed=seed)


def parameters(mixer):
    return random_parameters(mixer, jnp.zeros((1, 1, WIDTH)))


@functools.partial(jax.jit, static_argnums=0)
def run(mixer, params, x, cache=None, segment_ids=None):
    return mixer.apply({"params": params}, x, cache, segment_ids)


def stream(mixer, params, x, lengths):
    cache, outputs, start = mixer.init_cache(BATCH, LENGTH), [], 0
    for length in lengths:
        y, cache = run(mixer, params, x[:, start : start + length], cache)
        outputs.append(y)
        start += length
    return jnp.concatenate(outputs, axis=1)


# One of a kind by day.
DAY = ("carve", "gdn2", "mamba2", "mamba3_mimo", "rwkv7", "attention", "swa")
EACH = [pytest.param(name, marks=() if name in DAY else pytest.mark.slow) for name in MIXERS]


@pytest.mark.parametrize("name", EACH)
def test_one_token_at_a_time_gives_the_same_and_later_ones_change_no_bit(name):
    mixer = make(name)
    params, x = parameters(mixer), inputs()
    whole, nothing = run(mixer, params, x)
    assert nothing is None
    assert whole.shape == x.shape
    np.testing.assert_allclose(stream(mixer, params, x, [1] * LENGTH), whole, atol=2e-5)

    changed, _ = run(mixer, params, x.at[:, 11:].set(inputs(7)[:, 11:]))
    np.testing.assert_array_equal(changed[:, :11], whole[:, :11])
    assert not np.allclose(changed[:, 11:], whole[:, 11:])


@pytest.mark.parametrize(
    "name", ["carve", "gdn2", "comba", "retnet", "mamba3", "rwkv7", "attention", "swa"]
)
def test_packed_documents_equal_documents_apart(name):
    mixer = make(name)
    params, x = parameters(mixer), inputs()
    segment_ids = jnp.broadcast_to(jnp.where(jnp.arange(LENGTH) < 8, 3, 5), (BATCH, LENGTH))
    packed, _ = run(mixer, params, x, None, segment_ids)
    first, _ = run(mixer, params, x)
    second, _ = run(mixer, params, jnp.roll(x, -8, axis=1))
    np.testing.assert_allclose(packed[:, :8], first[:, :8], atol=2e-5)
    np.testing.assert_allclose(packed[:, 8:], second[:, : LENGTH - 8], atol=2e-5)
    assert not np.allclose(packed[:, 8:], first[:, 8:], atol=1e-3)


@pytest.mark.parametrize(
    "name", ["carve", pytest.param("gdn2", marks=pytest.mark.slow), "attention", "swa"]
)
def test_an_uneven_split_gives_the_same(name):
    recurrent = not isinstance(MIXERS[name], Softmax)
    mixer = make(name, **({"implementation": "chunked"} if recurrent else {}))
    params, x = parameters(mixer), inputs()
    whole, _ = run(mixer, params, x)
    np.testing.assert_allclose(stream(mixer, params, x, [11, 13]), whole, atol=2e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("carve", "gdn2", "mamba2", "rwkv7", "swa"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("comba", "kda", "gla")),
    ],
)
def test_gradients_reach_every_parameter(name):
    mixer = make(name)
    params, x = parameters(mixer), inputs()

    @jax.jit
    def gradients(params, x):
        return jax.grad(lambda p, x: jnp.sum(jnp.sin(run(mixer, p, x)[0])), (0, 1))(params, x)

    for path, gradient in jax.tree.leaves_with_path(gradients(params, x)):
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


@pytest.mark.parametrize("name", ["carve", "gdn2", "mamba2", "swa"])
def test_bfloat16_keeps_parameters_and_state_in_float32(name):
    mixer, exact = make(name, compute_dtype="bfloat16"), make(name)
    params, x = parameters(exact), inputs()
    initial = jax.eval_shape(mixer.init, jax.random.key(0), x)
    assert {p.dtype for p in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    y, cache = run(mixer, params, x.astype(jnp.bfloat16), mixer.init_cache(BATCH, LENGTH))
    assert y.dtype == jnp.bfloat16
    if name in FAMILY:
        assert cache.query.dtype == jnp.bfloat16
        assert jax.tree.leaves(cache.state)[0].dtype == jnp.float32
    reference, _ = run(exact, params, x)
    error = jnp.linalg.norm(y - reference) / jnp.linalg.norm(reference)
    assert 1e-5 < error < 0.05


def test_only_full_attention_needs_room_for_the_whole_sequence():
    def bytes_for(name, length):
        cache = jax.eval_shape(lambda: make(name).init_cache(1, length))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))

    grown = {name for name in MIXERS if bytes_for(name, 1000) != bytes_for(name, 100)}
    assert grown == {"attention"}


def test_softmax_heads_may_be_grouped():
    x = inputs()
    mixer = SoftmaxAttention(num_heads=4, head_dim=8, kv_heads=2, window=3)
    params = parameters(mixer)
    assert params["k_proj"]["kernel"].shape == (WIDTH, 16)
    whole, _ = run(mixer, params, x)
    np.testing.assert_allclose(stream(mixer, params, x, [11, 13]), whole, atol=1e-5)


def test_caches_of_another_batch_are_refused():
    errors = {"gdn2": "cache has shape", "swa": "cache.key has shape"}
    for name, words in (errors | {"mamba3": "cache.angle has shape"}).items():
        mixer = make(name)
        with pytest.raises(ValueError, match=words):
            run(mixer, parameters(mixer), inputs(), mixer.init_cache(BATCH + 1, LENGTH))
