import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.mixers import FAMILY, GateSpec
from carve_jax.mixers.gates import (
    gate,
    init_a_log,
    init_dt_bias,
    log_decay,
    retention_log_decay,
    timestep,
)


def test_presets_are_the_rows_of_the_table():
    gates = {name: entry.gates for name, entry in FAMILY.items()}
    rows = {name: (g.decay, g.erase, g.write) for name, g in gates.items()}
    assert rows == {
        "linear_attention": ("none", "none", "one"),
        "retnet": ("constant", "none", "one"),
        "mamba2": ("scalar", "none", "timestep"),
        "gla": ("channel", "none", "one"),
        "deltanet": ("none", "scalar", "tied"),
        "gdn": ("scalar", "scalar", "tied"),
        "kda": ("channel", "scalar", "tied"),
        "comba": ("scalar", "scalar", "tied"),
        "gdn2": ("channel", "channel", "channel"),
        "carve": ("channel", "channel", "scalar"),
    }
    assert [name for name, g in gates.items() if g.content] == ["carve"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"decay": "vector"}, "decay='vector'; choose one of none, constant, scalar, channel"),
        ({"erase": "constant"}, "erase='constant'; choose one of none, scalar, channel"),
        ({"write": "two"}, "write='two'; choose one of one, tied, timestep, scalar, channel"),
        ({"erase": "channel", "write": "tied"}, "needs a scalar erase gate, not 'channel'"),
        ({"decay_form": "linear"}, "choose one of softplus, logsigmoid, bounded"),
        ({"write": "timestep"}, "needs decay='scalar' of the form 'softplus', not 'channel'"),
        (
            {"decay": "scalar", "decay_form": "bounded", "write": "timestep"},
            "not 'scalar' of the form 'bounded'",
        ),
        ({"closed_loop": True}, "needs a scalar decay and a scalar erase gate, not 'channel'"),
        ({"content": True, "gate_chunk": 0}, "gate_chunk=0; it must be 1 or more"),
        ({"erase": "scalar", "content": True}, "needs a channel erase gate, not 'scalar'"),
        ({"content": True, "content_scale": 0.0}, "content_scale=0.0; it must be above 0"),
        ({"erase_bias": float("nan")}, "erase_bias=nan; it must be finite"),
        ({"erase": "none", "erase_bias": 1.0}, "erase_bias needs an erase gate, not erase='none'"),
        ({"content_source": "memory"}, "content_source='memory'; choose one of previous_chunk"),
    ],
)
def test_refuses_what_means_nothing(fields, words):
    with pytest.raises(ValueError, match=words):
        GateSpec(**fields)


def test_log_decay_is_the_published_formula_in_float32():
    projection = jnp.array([[[[1.5, -30.0]], [[0.25, 40.0]]]], jnp.bfloat16).swapaxes(1, 2)
    dt_bias = jnp.array([[0.5, -0.5], [1.0, 2.0]])
    a_log = jnp.log(jnp.array([2.0, 16.0]))
    step = timestep(projection, dt_bias)
    decay = log_decay(step, a_log)
    raw = np.asarray(projection, np.float64) + np.asarray(dt_bias)
    expected = -np.array([2.0, 16.0])[:, None] * np.log1p(np.exp(raw))
    np.testing.assert_allclose(decay, expected, rtol=1e-6)
    assert decay.dtype == step.dtype == jnp.float32
    assert (decay <= 0).all()


def test_retention_is_the_published_constant():
    np.testing.assert_allclose(
        np.exp(retention_log_decay(3)), [1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128], rtol=1e-6
    )


def test_gate_is_rounded_once():
    logits = jnp.linspace(-4, 4, 65, dtype=jnp.bfloat16).reshape(1, 65, 1, 1)
    exact = 2 * jax.nn.sigmoid(logits.astype(jnp.float32))
    np.testing.assert_array_equal(gate(logits, 2.0), exact.astype(jnp.bfloat16))


def test_initial_decay_spans_the_published_ranges():
    rate = np.exp(init_a_log(jax.random.key(0), (4000,)))
    assert 1 <= rate.min() < 1.1
    assert 15.9 < rate.max() <= 16
    np.testing.assert_allclose(rate.mean(), 8.5, rtol=0.03)
    step = np.asarray(jax.nn.softplus(init_dt_bias(jax.random.key(1), (4000,))))
    assert 0.999e-3 <= step.min() < 1.1e-3
    assert 0.09 < step.max() <= 0.1001
    np.testing.assert_allclose(np.log(step).mean(), np.log(1e-2), atol=0.1)
