"""Recipe: schedule, decay mask, clip."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from carve_jax.errors import UserError
from carve_jax.model import LanguageModel
from carve_jax.training.optimizer import (
    OptimizerConfig,
    leaf_name,
    make_optimizer,
    make_schedule,
    weight_decay_mask,
)
from carve_jax.training.settings import make_model_config
from configs import base
from tests.training.helpers import tiny_config


def recipe(**changes):
    section = base.get_config().optimizer.to_dict()
    return OptimizerConfig(**section | changes)


def test_schedule_warms_up_then_falls_to_a_tenth():
    schedule = make_schedule(recipe(), steps=1000)
    rates = np.array([schedule(step) for step in range(1001)])
    np.testing.assert_allclose(rates[10], 4e-4, rtol=1e-6)
    np.testing.assert_allclose(rates[1000], 4e-5, rtol=1e-5)
    np.testing.assert_allclose(rates[0], 4e-5, rtol=1e-5)
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    half = 4e-4 * (0.1 + 0.9 * 0.5)
    np.testing.assert_allclose(rates[505], half, rtol=1e-4)


def test_schedule_of_one_step_is_at_the_peak():
    np.testing.assert_allclose(make_schedule(recipe(), steps=1)(0), 4e-4, rtol=1e-6)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match=r"warmup_fraction is 1.5"):
        make_schedule(recipe(warmup_fraction=1.5), steps=10)


def test_decay_mask_of_the_whole_model():
    config = make_model_config(tiny_config(model__pattern=("carve", "swa"), model__layers=2))
    model = LanguageModel(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16), jnp.int32))
    decayed: dict[bool, set[str]] = {True: set(), False: set()}
    for path, mask in jax.tree_util.tree_leaves_with_path(weight_decay_mask(variables["params"])):
        decayed[mask].add(leaf_name(path))
    assert decayed[False] == {"A_log", "dt_bias", "bias", "scale", "o_norm"}
    matrices = {"kernel", "embedding", "content_down", "content_up", "q_conv", "k_conv", "v_conv"}
    assert decayed[True] == matrices


def test_undecayed_leaves_stand_still_without_gradient():
    params = {"layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2,))}}
    optimizer = make_optimizer(recipe(), lambda step: 0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)["layer"]
    np.testing.assert_array_equal(after["bias"], 1.0)
    np.testing.assert_allclose(after["kernel"], 1.0 - 0.5 * 0.1, rtol=1e-6)


def test_gradients_are_clipped_to_the_global_norm():
    params = {"kernel": jnp.zeros((2,))}
    optimizer = make_optimizer(recipe(clip_norm=1.0), lambda step: 1.0)
    _, state = optimizer.update({"kernel": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    first_moment = optax.tree.get(state, "mu")["kernel"]
    np.testing.assert_allclose(first_moment, [0.06, 0.08], rtol=1e-5)  # (1 − β₁) · (0.6, 0.8)


def test_the_learning_rate_of_p_up_has_a_factor_of_its_own():
    params = {"mixer": {"content_up": jnp.ones((2, 2)), "content_down": jnp.ones((2, 2))}}
    grads = jax.tree.map(lambda leaf: 0.1 * leaf, params)

    def updates(**changes):
        optimizer = make_optimizer(recipe(**changes), lambda step: 0.5)
        state = optimizer.init(params)
        return optimizer.update(grads, state, params)[0]["mixer"], jax.tree.structure(state)

    (plain, as_before), (faster, _) = updates(), updates(content_up_lr_factor=8.0)
    np.testing.assert_allclose(faster["content_up"], 8 * plain["content_up"], rtol=1e-6)
    np.testing.assert_array_equal(faster["content_down"], plain["content_down"])
    # At a factor of 1 the state is that of runs from before there was one.
    assert updates(content_up_lr_factor=1.0)[1] == as_before
    assert len(make_optimizer(recipe(), lambda step: 0.5).init(params)) == 2
    with pytest.raises(UserError, match="and 0 leaves P_up as it starts"):
        recipe(content_up_lr_factor=-1.0)


def test_biases_and_skips_of_mamba_do_not_decay():
    leaves = {"D": 1.0, "q_conv_bias": 1.0, "b_bias": 1.0, "b_norm": 1.0, "q_conv": 1.0}
    mask = weight_decay_mask({"mixer": leaves})["mixer"]
    assert [name for name, decays in mask.items() if decays] == ["q_conv"]
