"""The trapezoidal rule against its recurrence written out: values, states and gradients."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.gated_delta import gated_delta_rule
from carve_jax.ops.trapezoid import init_trapezoid_state, trapezoidal_rule

BATCH, LENGTH, HEADS, K, V = 2, 21, 2, 8, 5


class Arrays(NamedTuple):
    query: jax.Array
    key: jax.Array
    value: jax.Array
    log_decay: jax.Array
    timestep: jax.Array
    trapezoid: jax.Array


def arrays(rank, seed=0):
    random = np.random.default_rng(seed)
    gates = (BATCH, LENGTH, HEADS)
    values = (
        random.normal(size=(BATCH, LENGTH, rank, HEADS, K)) / np.sqrt(K),
        random.normal(size=(BATCH, LENGTH, rank, HEADS, K)),
        random.normal(size=(BATCH, LENGTH, rank, HEADS, V)),
        -random.exponential(0.4, size=gates),
        random.exponential(0.7, size=gates),
        random.uniform(size=gates),
    )
    return Arrays(*(jnp.asarray(a, jnp.float32) for a in values))


@jax.jit
def written_out(inputs):
    """S itself, token by token, of the products of this token and of the last."""
    outer = functools.partial(jnp.einsum, "btrnk,btrnv->btnkv", precision="highest")
    now = outer(inputs.key, inputs.value)
    last = jnp.pad(now[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))

    def step(state, token):
        now, last, query, log_decay, timestep, mix = token
        decay, timestep, mix = (a[..., None, None] for a in (jnp.exp(log_decay), timestep, mix))
        state = decay * state + (1 - mix) * timestep * decay * last + mix * timestep * now
        return state, jnp.einsum("brnk,bnkv->brnv", query, state, precision="highest")

    tokens = (now, last, inputs.query, *inputs[3:])
    tokens = jax.tree.map(lambda a: a.swapaxes(0, 1), tokens)
    state, outputs = jax.lax.scan(step, jnp.zeros((BATCH, HEADS, K, V)), tokens)
    return outputs.swapaxes(0, 1), state


@functools.partial(jax.jit, static_argnames=("implementation", "chunk_size"))
def rule(inputs, state=None, segment_ids=None, implementation="recurrent", chunk_size=16):
    return trapezoidal_rule(
        *inputs,
        initial_state=state,
        segment_ids=segment_ids,
        implementation=implementation,
        chunk_size=chunk_size,
    )


@pytest.mark.parametrize(
    ("rank", "implementation"),
    [
        pytest.param(1, "recurrent", marks=pytest.mark.slow),
        pytest.param(1, "chunked", marks=pytest.mark.slow),
        (3, "recurrent"),
        (3, "chunked"),
    ],
)
def test_equals_the_recurrence_written_out_with_gradients(rank, implementation):
    inputs = arrays(rank)
    output, state = rule(inputs, implementation=implementation)
    expected, memory = written_out(inputs)
    np.testing.assert_allclose(output, expected, rtol=2e-5, atol=2e-5)
    own = jnp.einsum("brnk,brnv->bnkv", state.key, state.value)
    whole = state.memory + state.weight[..., None, None] * own
    np.testing.assert_allclose(whole, memory, rtol=2e-5, atol=2e-5)

    def gradients(function):
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(function(x)[0]))))(inputs)

    ours = gradients(functools.partial(rule, implementation=implementation))
    for name, mine, theirs in zip(Arrays._fields, ours, gradients(written_out), strict=True):
        assert np.abs(theirs).max() > 0.1, name
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("lengths", [[1] * LENGTH, [8, 13]], ids=["ones", "two"])
def test_any_split_gives_the_same(lengths):
    inputs, state, outputs, start = arrays(2), None, [], 0
    for length in lengths:
        part = jax.tree.map(lambda a, s=start, n=length: a[:, s : s + n], inputs)
        output, state = rule(part, state)
        outputs.append(output)
        start += length
    whole, last = rule(inputs)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), whole, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(state, last, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "implementation", [pytest.param("recurrent", marks=pytest.mark.slow), "chunked"]
)
def test_documents_see_nothing_of_one_another(implementation):
    inputs, ends = arrays(2), [0, 5, 6, LENGTH]
    ids = jnp.repeat(jnp.array([1, 2, 9]), jnp.diff(jnp.array(ends)))[None].repeat(BATCH, 0)
    _, before = rule(arrays(2, seed=4))
    packed, last = rule(inputs, before, ids, implementation=implementation)
    for i in range(3):
        document = jax.tree.map(lambda a, i=i: a[:, ends[i] : ends[i + 1]], inputs)
        output, state = rule(document, before if i == 0 else None)
        np.testing.assert_allclose(packed[:, ends[i] : ends[i + 1]], output, rtol=2e-5, atol=2e-5)
    for mine, theirs in zip(last, state, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)


def test_with_a_trapezoid_of_one_it_is_the_plain_rule():
    inputs = arrays(1)._replace(trapezoid=jnp.ones((BATCH, LENGTH, HEADS)))
    erase = jnp.zeros((BATCH, LENGTH, HEADS, 1))
    expected, _ = gated_delta_rule(
        *(a[:, :, 0] for a in inputs[:3]),
        inputs.log_decay[..., None],
        erase,
        inputs.timestep[..., None],
        scale=1.0,
        implementation="recurrent",
    )
    np.testing.assert_allclose(rule(inputs)[0][:, :, 0], expected, rtol=1e-5, atol=1e-5)


def test_hard_resets_leave_no_trace_and_no_nan():
    inputs = arrays(2)
    inputs = inputs._replace(log_decay=inputs.log_decay.at[:, 10].set(-1000.0))

    changed = jax.tree.map(lambda a: a.at[:, :10].multiply(0.5), inputs)
    before, after = (rule(x, implementation="chunked")[0] for x in (inputs, changed))
    np.testing.assert_array_equal(before[:, 10:], after[:, 10:])

    @jax.jit
    @jax.grad
    def gradients_of(inputs):
        return jnp.sum(rule(inputs, implementation="chunked")[0] ** 2)

    gradients = gradients_of(inputs)
    for name, gradient in gradients._asdict().items():
        assert np.isfinite(gradient).all(), name


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"key": jnp.zeros((BATCH, LENGTH, 3, HEADS, K))}, ValueError, "key has shape"),
        ({"value": jnp.zeros((BATCH, LENGTH, HEADS, V))}, ValueError, "value has shape"),
        ({"timestep": jnp.zeros((BATCH, LENGTH, 1))}, ValueError, "timestep has shape"),
        ({"trapezoid": jnp.zeros((BATCH, LENGTH, HEADS), int)}, TypeError, "trapezoid has dtype"),
        ({"query": jnp.zeros((BATCH, 0, 2, HEADS, K))}, ValueError, "has shape"),
    ],
)
def test_refuses_what_does_not_fit(change, error, words):
    with pytest.raises(error, match=words):
        trapezoidal_rule(*arrays(2)._replace(**change))


def test_refuses_an_unknown_implementation_and_a_state_of_other_sizes():
    with pytest.raises(ValueError, match="unknown implementation 'loop'"):
        rule(arrays(1), implementation="loop")
    state = init_trapezoid_state(BATCH, 2, HEADS, K, V, jnp.float32)
    with pytest.raises(ValueError, match=r"initial_state\.key has shape"):
        rule(arrays(1), state)
