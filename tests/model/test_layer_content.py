"""Models whose erase gates read the layer below: `content_source="previous_layer"`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.decoding import prefill
from carve_jax.mixers import MIXERS
from carve_jax.model import LanguageModel, LMConfig
from carve_jax.sharding import AXES, make_mesh
from tests.mixers.parameters import random_normal, random_parameters, random_tokens

BATCH, LENGTH, CHUNK = 2, 24, 8


def config(pattern=("carve",), layers=2, **gates):
    return LMConfig(
        vocab_size=40,
        d_model=16,
        layers=layers,
        pattern=pattern,
        mlp_dim=16,
        num_heads=2,
        key_dim=8,
        value_dim=4,
        gates={
            "gate_chunk": CHUNK,
            "content_rank": 4,
            "content_source": "previous_layer",
            **gates,
        },
        window=5,
        implementation="recurrent",
    )


@functools.cache
def build(pattern=("carve",)):
    model = LanguageModel(config(pattern, 2 * len(pattern)))
    return model, random_parameters(model, jnp.zeros((1, 1), jnp.int32))


def tokens():
    return random_tokens(BATCH, LENGTH, below=40)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, tokens, cache=None, segment_ids=None):
    return model.apply({"params": params}, tokens, cache, segment_ids)


TOKENS, HALVES = (1,) * LENGTH, (11, 13)


@pytest.mark.parametrize(
    ("pattern", "lengths"),
    [
        (("carve",), TOKENS),
        pytest.param(("carve", "swa"), HALVES, marks=pytest.mark.slow),
        pytest.param(("carve",), HALVES, marks=pytest.mark.slow),
        pytest.param(("carve", "swa"), TOKENS, marks=pytest.mark.slow),
    ],
)
def test_any_split_gives_the_same(pattern, lengths):
    model, params = build(pattern)
    whole, _ = run(model, params, tokens())
    cache, parts, start = model.init_cache(BATCH, LENGTH), [], 0
    for length in lengths:
        logits, cache = run(model, params, tokens()[:, start : start + length], cache)
        parts.append(logits)
        start += length
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-4)


def test_documents_are_apart_and_later_tokens_change_no_bit():
    model, params = build()
    whole, _ = run(model, params, tokens())
    segment_ids = jnp.broadcast_to(jnp.where(jnp.arange(LENGTH) < CHUNK, 0, 1), (BATCH, LENGTH))
    packed, _ = run(model, params, tokens(), None, segment_ids)
    second, _ = run(model, params, jnp.roll(tokens(), -CHUNK, axis=1))
    np.testing.assert_allclose(packed[:, :CHUNK], whole[:, :CHUNK], atol=1e-4)
    np.testing.assert_allclose(packed[:, CHUNK:], second[:, : LENGTH - CHUNK], atol=1e-4)
    changed, _ = run(model, params, tokens().at[:, 11:].set(3))
    np.testing.assert_array_equal(changed[:, :11], whole[:, :11])


def test_prompts_of_different_lengths_are_read_as_their_whole_forward_pass():
    model, params = build()
    prompts = [np.asarray(tokens()[0, :n]) for n in (5, 17)]
    decoding = prefill(model, params, prompts, max_length=LENGTH, chunk=CHUNK)
    whole, _ = run(model, params, tokens()[:1].repeat(2, axis=0))
    expected = [whole[0, len(prompt) - 1] for prompt in prompts]
    np.testing.assert_allclose(decoding.logits, jnp.stack(expected), atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def gradients(model, params):
    def loss(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, tokens())[0]))

    return jax.grad(loss)(params)


@pytest.mark.slow  # always: on content-dependent erase, in tests/ops
def test_one_layer_is_blind_and_of_two_the_upper_one_sees():
    """A layer's gates never see its own memory, so that the first is GDN-2 with a scalar write."""
    model, params = build()
    mixer = gradients(model, params)["blocks"]["layer_0_carve"]["mixer"]
    for name in ("content_up", "content_down"):
        np.testing.assert_array_equal(mixer[name][0], 0)
        assert np.abs(mixer[name][1]).max() > 0

    one = LanguageModel(config(layers=1))
    blind = LanguageModel(config(layers=1, content=False))
    params = random_parameters(one, jnp.zeros((1, 1), jnp.int32))
    block = params["blocks"]["layer_0_carve"]
    kept = {k: v for k, v in block["mixer"].items() if not k.startswith("content_")}
    without = {**params, "blocks": {"layer_0_carve": {**block, "mixer": kept}}}
    seen, unseen = run(one, params, tokens())[0], run(blind, without, tokens())[0]
    np.testing.assert_allclose(seen, unseen, atol=1e-6)


def test_a_layer_of_another_shape_below_is_refused():
    mixer = MIXERS["carve"](num_heads=2, key_dim=8, value_dim=4, content_source="previous_layer")
    x, below = random_normal(1, 12, 16), jnp.zeros((1, 1, 3, 4))
    with pytest.raises(ValueError, match=r"has shape \(1, 1, 3, 4\), where this layer reads"):
        jax.eval_shape(
            lambda: mixer.init(jax.random.key(0), x, None, None, below, method="with_content")
        )


def test_values_may_be_grouped():
    sizes = {"num_heads": 4, "num_key_heads": 2, "key_dim": 8, "value_dim": 4, "gate_chunk": 4}
    mixer = MIXERS["carve"](**sizes, content_source="previous_layer", implementation="recurrent")
    x, below = random_normal(1, 12, 16), random_normal(1, 3, 4, 4, seed=1)
    params = random_parameters(mixer, x)

    def mixed(below):
        return mixer.apply({"params": params}, x, None, None, below, method="with_content")[0]

    first, second = jax.jit(mixed)(below), jax.jit(mixed)(below.at[:, 2].set(0))
    np.testing.assert_array_equal(first[:, :8], second[:, :8])
    assert (first[:, 8:] != second[:, 8:]).any()


def test_a_sequence_may_lie_on_two_devices():
    model, params = build()
    expected, _ = run(model, params, tokens()[:, :16])
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {"sequence": 2})
    with jax.set_mesh(mesh):
        found = jax.jit(lambda p, t: model.apply({"params": p}, t)[0])(params, tokens()[:, :16])
    np.testing.assert_allclose(found, expected, atol=1e-4)
