"""One step: accumulation, refusal of what is not finite, donation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from carve_jax.training.loss import LossSums
from carve_jax.training.run import build
from carve_jax.training.step import finite_by_group
from tests.training.helpers import ANY_LAYER, tiny_config


@pytest.fixture(scope="module")
def run():
    return build(tiny_config(**ANY_LAYER))


@pytest.fixture
def batch(run):
    return dict(next(run.pipeline.train_iterator()))


def copy(state):
    return jax.tree.map(np.array, state)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_accumulation_equals_the_whole_batch(run, batch):
    batch["loss_mask"] = np.array(batch["loss_mask"])
    batch["loss_mask"][0] = 1.0  # one row counts far more tokens than the others
    in_turns = build(tiny_config(**ANY_LAYER, optimizer__accumulate_steps=4))
    state, whole = run.train_step(run.init(), batch)
    turned_state, turned = in_turns.train_step(in_turns.init(), batch)
    assert turned.sums.tokens == whole.sums.tokens
    np.testing.assert_allclose(turned.sums.nats, whole.sums.nats, rtol=1e-5)
    np.testing.assert_allclose(turned.grad_norm, whole.grad_norm, rtol=1e-5)
    moments = [jax.tree.leaves(optax.tree.get(s.opt_state, "mu")) for s in (turned_state, state)]
    largest = max(np.abs(leaf).max() for leaf in moments[1])
    for found, expected in zip(*moments, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * largest)


def test_a_step_learns_and_reports(run, batch):
    state, first = run.train_step(run.init(), batch)
    for _ in range(5):
        state, metrics = run.train_step(state, batch)
    assert int(state.step) == 6
    assert metrics.sums.nats < first.sums.nats
    assert first.grad_norm > 0
    np.testing.assert_allclose(first.param_norm, optax.tree.norm(run.init().params), rtol=1e-5)
    np.testing.assert_allclose(first.learning_rate, 1e-2, rtol=1e-6)
    assert all(jax.device_get(metrics.finite).values())


def test_what_is_not_finite_is_refused_from_then_on(run, batch):
    state, _ = run.train_step(run.init(), batch)
    good = copy(state)
    poisoned = state.replace(
        params=jax.tree_util.tree_map_with_path(
            lambda path, x: x.at[0, 0].set(jnp.nan) if path[0].key == "head" else x, state.params
        )
    )
    poisoned_bits = copy(poisoned)
    after, metrics = run.train_step(poisoned, batch)
    assert not after.healthy
    assert_same_bits(copy(after.replace(healthy=True)), poisoned_bits)
    finite = jax.device_get(metrics.finite)
    assert not finite["the loss"]
    assert not finite["head"]
    healed = after.replace(params=jax.tree.map(jnp.asarray, good.params))
    later, metrics = run.train_step(healed, batch)
    assert all(jax.device_get(metrics.finite).values())
    assert_same_bits(copy(later.replace(healthy=True)), good)


def test_groups_are_modules(run, batch):
    _, metrics = run.train_step(run.init(), batch)
    assert set(metrics.finite) == {
        "the loss",
        "the gradient norm",
        "embed",
        "blocks/layer_0_attention/mixer",
        "blocks/layer_0_attention/mlp",
        "blocks/layer_0_attention/mixer_norm",
        "blocks/layer_0_attention/mlp_norm",
        "final_norm",
        "head",
    }


def test_a_gradient_of_infinity_names_its_group_alone():
    grads = {"embed": {"embedding": jnp.array([1.0, jnp.inf])}, "head": {"kernel": jnp.ones(2)}}
    sums = LossSums(*(jnp.ones(()) for _ in LossSums._fields))
    finite = jax.device_get(finite_by_group(grads, sums))
    assert finite == {"the loss": True, "embed": False, "head": True}


def test_the_old_state_is_donated(run, batch):
    state = run.init()
    run.train_step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
