"""A document that is not finite spoils no other, whatever holds its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import carve_jax as cj

T, CUTS = 40, (0, 8, 27)  # documents start there, within a tile and across two
NAMES = ("query", "key", "value", "log_decay", "erase", "write")


def arrays():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    key = normal(1, T, 2, 4)
    return {
        "query": normal(1, T, 2, 4),
        "key": key / jnp.linalg.norm(key, axis=-1, keepdims=True),
        "value": normal(1, T, 4, 4),  # two value heads a key head
        "log_decay": -jnp.abs(normal(1, T, 2, 4)),
        "erase": jax.nn.sigmoid(normal(1, T, 2, 4)),
        "write": jax.nn.sigmoid(normal(1, T, 4, 1)),
    }


SEGMENTS = jnp.asarray([np.searchsorted(CUTS, np.arange(T), side="right")])


@jax.jit
def plain(inputs, state=None):
    return cj.gated_delta_rule(
        *(inputs[name] for name in NAMES),
        segment_ids=SEGMENTS,
        initial_state=state,
        chunk_size=16,
        implementation="chunked",
    )


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_stays_in_its_document_and_head(name, bad):
    inputs = arrays()
    whole, state = plain(inputs)
    broken = inputs | {name: inputs[name].at[0, 12, 0, 0].set(bad)}
    output, after = plain(broken)
    other = np.ones(T, bool)
    other[12:27] = False
    np.testing.assert_array_equal(output[:, other], whole[:, other])
    assert not np.isfinite(output[:, 12:27, 0]).any()
    mine = 2 if name in ("query", "key", "log_decay", "erase") else 1  # heads that read it
    np.testing.assert_array_equal(output[:, :, mine:], whole[:, :, mine:])
    np.testing.assert_array_equal(after, state)


def test_the_last_document_and_the_first_state():
    inputs = arrays()
    whole, _ = plain(inputs, jnp.zeros((1, 4, 4, 4)))
    _, after = plain(inputs | {"value": inputs["value"].at[0, 30, 1].set(jnp.nan)})
    assert np.isnan(after[0, 1]).all()
    assert np.isfinite(after[0, [0, 2, 3]]).all()
    output, after = plain(inputs, jnp.zeros((1, 4, 4, 4)).at[0, 2, 0, 0].set(jnp.nan))
    assert np.isnan(output[0, :8, 2]).all()
    np.testing.assert_array_equal(output[:, 8:], whole[:, 8:])
    assert np.isfinite(after).all()


def test_a_hard_reset_is_no_fault():
    inputs = arrays()
    never = inputs | {"log_decay": inputs["log_decay"].at[0, 12].set(-jnp.inf)}
    nearly = inputs | {"log_decay": inputs["log_decay"].at[0, 12].set(-1e5)}
    np.testing.assert_array_equal(plain(never)[0], plain(nearly)[0])


def test_the_gradient_of_the_other_documents_is_theirs():
    inputs = arrays()
    others = jnp.asarray((np.arange(T) < 8) | (np.arange(T) >= 27))

    def loss(inputs):
        output, _ = plain(inputs)
        return jnp.sum(jnp.where(others[None, :, None, None], output, 0) ** 2)

    broken = inputs | {"value": inputs["value"].at[0, 12].set(jnp.nan)}
    ours, theirs = jax.grad(loss)(broken), jax.grad(loss)(inputs)
    for name in NAMES:
        np.testing.assert_array_equal(ours[name][:, others], theirs[name][:, others])


def test_content_of_another_document():
    inputs = arrays()
    inputs["erase"] = jax.scipy.special.logit(inputs["erase"])
    rng = np.random.default_rng(1)
    down, up = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, 4, 2), (4, 2, 4)))
    inputs = {n: x if n in ("value", "write") else jnp.repeat(x, 2, 2) for n, x in inputs.items()}
    segments = jnp.asarray([np.repeat([0, 1, 2], [8, 16, 16])])

    @jax.jit
    def carve(inputs):
        return cj.carve_rule(
            *(inputs[name] for name in NAMES),
            down,
            up,
            segment_ids=segments,
            gate_chunk=8,
            implementation="chunked",
        )

    whole, state = carve(inputs)
    output, after = carve(inputs | {"value": inputs["value"].at[0, 12, 0].set(jnp.nan)})
    np.testing.assert_array_equal(output[:, :8], whole[:, :8])
    np.testing.assert_array_equal(output[:, 24:], whole[:, 24:])
    np.testing.assert_array_equal(output[:, :, 1:], whole[:, :, 1:])
    assert np.isnan(output[0, 12:24, 0]).all()
    jax.tree.map(np.testing.assert_array_equal, after, state)
