import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.decoding import _read_chunk, prefill
from carve_jax.generate import _advance, decode, generate, sample
from carve_jax.model import LanguageModel, LMConfig
from tests.mixers.parameters import random_parameters, random_tokens

PATTERNS = [("gdn2",), ("carve", "swa"), ("carve", "attention")]


@functools.cache
def build(pattern):
    config = LMConfig(
        vocab_size=50,
        d_model=32,
        layers=2,
        pattern=pattern,
        mlp_dim=48,
        num_heads=2,
        key_dim=8,
        value_dim=16,
        gates={"gate_chunk": 8, "content_rank": 4},
        window=6,
        # It compiles fastest; one pattern takes what a user would.
        implementation=None if pattern == ("carve", "swa") else "recurrent",
    )
    model = LanguageModel(config)
    return model, random_parameters(model, jnp.zeros((1, 1), jnp.int32))


def prompt(length: int = 5):
    return random_tokens(2, length, below=50)


@pytest.mark.slow  # always: rows of different lengths, in test_decoding.py
@pytest.mark.parametrize("pattern", PATTERNS, ids="-".join)
def test_greedy_tokens_are_those_of_the_whole_forward_pass(pattern):
    model, params = build(pattern)
    new = generate(model, params, prompt(), max_new_tokens=23)
    whole = jnp.concatenate([prompt(), new], axis=1)
    logits, _ = jax.jit(model.apply)({"params": params}, whole)
    np.testing.assert_array_equal(new, jnp.argmax(logits[:, 4:-1], axis=-1))
    assert len(np.unique(new)) > 3


def test_tokens_are_streamed_and_rows_stop_at_a_stop_token():
    model, params = build(("gdn2",))
    free = np.asarray(generate(model, params, prompt(), max_new_tokens=12))
    stop = int(free[0, 4])
    steps = []
    new = generate(
        model, params, prompt(), max_new_tokens=12, stop_tokens=[stop], on_token=steps.append
    )
    new = np.asarray(new)
    assert new.shape == free.shape
    for row, whole in zip(new, free, strict=True):
        end = np.flatnonzero(whole == stop)
        end = end[0] if len(end) else len(whole)
        np.testing.assert_array_equal(row[:end], whole[:end])
        np.testing.assert_array_equal(row[end:], stop)
    np.testing.assert_array_equal(np.stack(steps, axis=1), new[:, : len(steps)])

    steps.clear()
    twins = jnp.stack([prompt()[0]] * 2)
    options = {"max_new_tokens": 12, "stop_tokens": [stop], "on_token": steps.append}
    both = generate(model, params, twins, **options)
    np.testing.assert_array_equal(both, new[:1].repeat(2, axis=0))
    assert len(steps) == 1 + np.flatnonzero(free[0] == stop)[0]


def test_the_first_call_of_a_program_is_compiled_as_the_later_ones_are():
    model, params = build(("gdn2",))
    params = jax.device_put(params, jax.devices()[1])  # committed, as a run's parameters are
    before = _read_chunk._cache_size(), _advance._cache_size()
    decoding = prefill(model, params, prompt(16), max_length=20, chunk=8)
    decode(model, params, decoding, max_new_tokens=3, on_token=lambda tokens: None)
    compiled = _read_chunk._cache_size(), _advance._cache_size()
    assert np.subtract(compiled, before).tolist() == [1, 1]


def test_sampling_follows_the_key():
    model, params = build(("gdn2",))
    options = {"max_new_tokens": 8, "temperature": 1.0, "top_k": 20, "top_p": 0.9}
    one, again, other = (
        generate(model, params, prompt(), rng=jax.random.key(seed), **options) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert generate(model, params, prompt(), max_new_tokens=0).shape == (2, 0)


def frequencies(**options):
    probability = jnp.array([0.1, 0.4, 0.2, 0.3])
    logits = jnp.broadcast_to(jnp.log(probability), (20000, 4))
    drawn = sample(logits, jax.random.key(0), **options)
    return np.bincount(drawn, minlength=4) / 20000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.35}, [0, 1, 0, 0]),
        ({"top_p": 0.8}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0]),
    ],
    ids=str,
)
def test_samples_have_the_probabilities_asked_for(options, expected):
    np.testing.assert_allclose(frequencies(**options), expected, atol=0.015)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"prompt_tokens": jnp.zeros((2, 0), jnp.int32)}, ValueError, "at least one token"),
        ({"prompt_tokens": jnp.zeros((2, 3))}, TypeError, "expected integers"),
        ({"prompt_tokens": jnp.full((1, 1), 50)}, ValueError, "vocabulary of 50"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens=-1"),
        ({"temperature": -0.5}, ValueError, "temperature=-0.5"),
        ({"temperature": 1.0}, ValueError, "give rng=jax.random.key"),
        ({"top_k": 0}, ValueError, "top_k=0"),
        ({"top_p": 0.0}, ValueError, "top_p=0.0"),
        ({"stop_tokens": [50]}, ValueError, "stop token 50 is outside .* vocabulary of 50"),
        ({"stop_tokens": "\n"}, TypeError, r"stop token '\\n' is no integer"),
        ({"prefill_chunk": 0}, ValueError, "chunk=0"),
    ],
)
def test_refuses_bad_arguments(changes, error, words):
    model, params = build(("gdn2",))
    arguments = {"prompt_tokens": prompt(), "max_new_tokens": 2, **changes}
    with pytest.raises(error, match=words):
        generate(model, params, arguments.pop("prompt_tokens"), **arguments)
