"""Angles that add up along the sequence, and the rotation by them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.rotation import UNITS, cumulative_turns, rotate_pairs

BATCH, LENGTH, HEADS, PAIRS = 2, 17, 3, 2
ENDS = [0, 1, 6, LENGTH]


def increments(seed=0, scale=0.7):
    random = np.random.default_rng(seed)
    return jnp.asarray(scale * random.normal(size=(BATCH, LENGTH, HEADS, PAIRS)), jnp.float32)


def documents():
    ids = np.repeat([0, 4, 5], np.diff(ENDS))
    return jnp.asarray(np.broadcast_to(ids, (BATCH, LENGTH)), jnp.int32)


def apart(turns, expected):
    """Distance between angles, in turns."""
    difference = np.asarray(turns, np.float64) - expected
    return np.abs(difference - np.round(difference)).max()


def test_sums_are_exact_over_a_hundred_thousand_tokens():
    random = np.random.default_rng(0)
    steps = 0.05 * random.random(size=(1, 100_000, 2)) * np.array([1, -1])
    increment = jnp.asarray(steps, jnp.float32)
    turns, last = cumulative_turns(increment)
    exact = np.cumsum(np.asarray(increment, np.float64), axis=1)
    assert np.abs(exact).max() > 2000
    assert apart(turns, exact) < 1e-6
    assert apart(last / UNITS, exact[:, -1]) < 1e-6
    # What the units are for: float32 is this far off.
    assert apart(jnp.cumsum(increment, axis=1), exact) > 1e-5


def test_any_split_gives_the_same_bits():
    increment = increments()
    whole, last = cumulative_turns(increment)
    parts, carried = [], None
    for part in jnp.split(increment, [1, 2, 9], axis=1):
        turns, carried = cumulative_turns(part, initial=carried)
        parts.append(turns)
    np.testing.assert_array_equal(jnp.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(carried, last)


def test_documents_start_at_zero_and_the_carried_angle_is_the_first_ones():
    increment, ids = increments(), documents()
    _, carried = cumulative_turns(increments(1))
    packed, last = cumulative_turns(increment, initial=carried, segment_ids=ids)
    for i in range(3):
        document = slice(ENDS[i], ENDS[i + 1])
        initial = carried if i == 0 else None
        alone, own = cumulative_turns(increment[:, document], initial=initial)
        np.testing.assert_array_equal(packed[:, document], alone)
    np.testing.assert_array_equal(last, own)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_those_of_the_plain_sum(packed):
    increment, ids = increments(scale=0.05), documents() if packed else None
    weight = increments(2)

    def plain(increment):
        ends = ENDS if packed else [0, LENGTH]
        parts = [increment[:, a:b] for a, b in itertools.pairwise(ends)]
        return jnp.concatenate([jnp.cumsum(part, axis=1) for part in parts], axis=1)

    def gradient(turns):
        return jax.grad(lambda x: jnp.sum(weight * jnp.sin(2 * jnp.pi * turns(x))))(increment)

    ours = gradient(lambda x: cumulative_turns(x, segment_ids=ids)[0])
    np.testing.assert_allclose(ours, gradient(plain), rtol=1e-4, atol=1e-4)


def test_rotates_the_first_pairs_and_leaves_the_rest():
    turns = increments()
    x = jnp.asarray(np.random.default_rng(3).normal(size=(BATCH, LENGTH, 2, HEADS, 7)), jnp.float32)
    y = np.asarray(rotate_pairs(x, turns))
    pairs = np.asarray(x[..., 0:4:2] + 1j * x[..., 1:4:2], np.complex128)
    expected = pairs * np.exp(2j * np.pi * np.asarray(turns, np.float64))[:, :, None]
    np.testing.assert_allclose(y[..., 0:4:2], expected.real, atol=5e-6)
    np.testing.assert_allclose(y[..., 1:4:2], expected.imag, atol=5e-6)
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(rotate_pairs(x, jnp.zeros_like(turns)), x)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"initial": jnp.zeros((BATCH, HEADS), jnp.int32)}, ValueError, "initial has shape"),
        ({"initial": jnp.zeros((BATCH, HEADS, PAIRS))}, TypeError, "initial has dtype float32"),
        ({"segment_ids": jnp.zeros((BATCH, 3), jnp.int32)}, ValueError, "segment_ids has shape"),
    ],
)
def test_refuses_what_does_not_fit(options, error, words):
    with pytest.raises(error, match=words):
        cumulative_turns(increments(), **options)
