"""A document that is not finite spoils no other, whatever holds its numbers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import carve_jax as cj
from carve_jax.ops.gated_delta import chunked, kernels

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
        "value": normal(1, T, 4, 4),  # two value heads per key head
        "log_decay": -jnp.abs(normal(1, T, 2, 4)),
        "erase": jax.nn.sigmoid(normal(1, T, 2, 4)),
        "write": jax.nn.sigmoid(normal(1, T, 4, 1)),
    }


SEGMENTS = jnp.asarray([np.searchsorted(CUTS, np.arange(T), side="right")])


IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["chunked", "pallas"])


@functools.partial(jax.jit, static_argnames="implementation")
def plain(inputs, state=None, *, implementation="chunked"):
    return cj.gated_delta_rule(
        *(inputs[name] for name in NAMES),
        segment_ids=SEGMENTS,
        initial_state=state,
        chunk_size=16,
        implementation=implementation,
    )


@functools.partial(jax.jit, static_argnames="implementation")
def carve(inputs, *, implementation):
    return cj.carve_rule(
        *(inputs[name] for name in (*NAMES, "down", "up")),
        segment_ids=GATED,
        gate_chunk=8,
        implementation=implementation,
    )


GATED = jnp.asarray([np.repeat([0, 1, 2], [8, 16, 16])])  # on the gate chunks


def carve_arrays():
    inputs = arrays()
    rng = np.random.default_rng(1)
    inputs["erase"] = jax.scipy.special.logit(inputs["erase"])
    inputs = {n: x if n in ("value", "write") else jnp.repeat(x, 2, 2) for n, x in inputs.items()}
    down, up = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, 4, 2), (4, 2, 4)))
    return inputs | {"down": down, "up": up}


@IMPLEMENTATIONS
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_stays_in_its_document_and_head(name, bad, implementation):
    inputs = arrays()
    whole, state = plain(inputs, implementation=implementation)
    broken = inputs | {name: inputs[name].at[0, 12, 0, 0].set(bad)}
    output, after = plain(broken, implementation=implementation)
    other = np.ones(T, bool)
    other[12:27] = False
    np.testing.assert_array_equal(output[:, other], whole[:, other])
    assert not np.isfinite(output[:, 12:27, 0]).any()
    mine = 2 if name in ("query", "key", "log_decay", "erase") else 1  # heads that read it
    np.testing.assert_array_equal(output[:, :, mine:], whole[:, :, mine:])
    np.testing.assert_array_equal(after, state)


@IMPLEMENTATIONS
def test_the_last_document_and_the_first_state(implementation):
    inputs, run = arrays(), functools.partial(plain, implementation=implementation)
    whole, _ = run(inputs, jnp.zeros((1, 4, 4, 4)))
    _, after = run(inputs | {"value": inputs["value"].at[0, 30, 1].set(jnp.nan)})
    assert np.isnan(after[0, 1]).all()
    assert np.isfinite(after[0, [0, 2, 3]]).all()
    output, after = run(inputs, jnp.zeros((1, 4, 4, 4)).at[0, 2, 0, 0].set(jnp.nan))
    assert np.isnan(output[0, :8, 2]).all()
    np.testing.assert_array_equal(output[:, 8:], whole[:, 8:])
    assert np.isfinite(after).all()


@IMPLEMENTATIONS
def test_a_hard_reset_is_no_fault(implementation):
    inputs, run = arrays(), functools.partial(plain, implementation=implementation)
    never = inputs | {"log_decay": inputs["log_decay"].at[0, 12].set(-jnp.inf)}
    nearly = inputs | {"log_decay": inputs["log_decay"].at[0, 12].set(-1e5)}
    np.testing.assert_array_equal(run(never)[0], run(nearly)[0])


def without_isolation(monkeypatch):
    def run_bare(run, inputs, state, *_, **__):
        return run(inputs, state)

    for module in (chunked, kernels):
        monkeypatch.setattr(module, "isolated", run_bare)


@pytest.mark.parametrize(
    ("rule", "implementation"),
    [
        ("gated_delta", "chunked"),
        pytest.param("gated_delta", "pallas", marks=pytest.mark.slow),
        pytest.param("carve", "pallas", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_without_what_is_broken(rule, implementation, monkeypatch):
    """Holds for every number with the loss over all tokens: those of other documents and heads, and
    of the broken one's tokens before; behind there is none. Finite inputs keep every bit."""
    inputs, rule, token, end = (
        (arrays(), plain, 12, 27) if rule == "gated_delta" else (carve_arrays(), carve, 14, 24)
    )

    def gradients():
        def loss(inputs, counts):
            output, state = rule.__wrapped__(inputs, implementation=implementation)
            states = sum(x.sum() for x in jax.tree.leaves(state) if x.ndim > 1)
            return jnp.sum(jnp.where(counts, output, 0) ** 2) + states, (output, state)

        return jax.jit(jax.grad(loss, has_aux=True))

    behind = jnp.zeros((1, T, 4, 1), bool).at[:, token:end, 0].set(True)
    other = (np.arange(T) < 8) | (np.arange(T) >= end)
    guarded = gradients()
    theirs, outputs = guarded(inputs, ~behind)
    for bad in (jnp.nan, jnp.inf):
        broken = inputs | {"value": inputs["value"].at[0, token, 0].set(bad)}
        ours, _ = guarded(broken, jnp.ones_like(behind))  # the loss itself is NaN
        for name in inputs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
            if name in NAMES:
                np.testing.assert_array_equal(ours[name][:, other], theirs[name][:, other])
    without_isolation(monkeypatch)
    bare = gradients()(inputs, ~behind)
    jax.tree.map(np.testing.assert_array_equal, bare, (theirs, outputs))


@IMPLEMENTATIONS
def test_content_of_another_document(implementation):
    inputs, run = carve_arrays(), functools.partial(carve, implementation=implementation)
    whole, state = run(inputs)
    output, after = run(inputs | {"value": inputs["value"].at[0, 12, 0].set(jnp.nan)})
    np.testing.assert_array_equal(output[:, :8], whole[:, :8])
    np.testing.assert_array_equal(output[:, 24:], whole[:, 24:])
    np.testing.assert_array_equal(output[:, :, 1:], whole[:, :, 1:])
    assert np.isnan(output[0, 12:24, 0]).all()
    jax.tree.map(np.testing.assert_array_equal, after, state)


@IMPLEMENTATIONS
@pytest.mark.parametrize("logit", [jnp.inf, -jnp.inf])
def test_an_infinite_logit_is_a_gate(logit, implementation):
    inputs, run = carve_arrays(), functools.partial(carve, implementation=implementation)
    nearly = jnp.sign(logit) * 200  # whose sigmoid is 0 or 1 in float32
    infinite, finite = (
        run(inputs | {"erase": inputs["erase"].at[0, 12].set(x)}) for x in (logit, nearly)
    )
    jax.tree.map(np.testing.assert_array_equal, infinite, finite)


@IMPLEMENTATIONS
@pytest.mark.parametrize("packed", [False, True])
def test_cost(packed, implementation, monkeypatch):
    """None without documents; with them, what `isolated` says, and one flag kept for gradients."""
    inputs = arrays()

    def traced():
        def rule(inputs):
            segments = SEGMENTS if packed else None
            return cj.gated_delta_rule(
                *map(inputs.get, NAMES), segment_ids=segments, implementation=implementation
            )

        kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(rule, x)[1], inputs))
        return str(jax.make_jaxpr(rule)(inputs)), sum(x.size * x.dtype.itemsize for x in kept)

    program, kept = traced()
    without_isolation(monkeypatch)
    bare, bare_kept = traced()
    if packed:
        # Of five inputs and the state, each for the flag and for the select: compilers merge them.
        assert len(re.findall("= is_finite", program)) == 2 * 6
        heads = 4
        assert kept - bare_kept <= T * heads + heads
    else:
        assert (program, kept) == (bare, bare_kept)
