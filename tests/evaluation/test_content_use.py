"""What a model makes of content, against the same model that never had any."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from carve_jax.errors import UserError
from carve_jax.evaluation.content_use import (
    content_use,
    gate_shift,
    up_gradient_share,
    without_content,
)
from carve_jax.evaluation.evaluated_model import EvaluatedModel
from carve_jax.evaluation.held_out import held_out_perplexity, token_scores
from carve_jax.evaluation.tasks import Options
from carve_jax.evaluation.trace import trace
from carve_jax.mixers.changes import GateChanges
from carve_jax.model import LanguageModel
from carve_jax.training.run import build_pipeline
from carve_jax.training.settings import make_model_config, read_batches
from tests.mixers.parameters import random_parameters
from tests.training.helpers import tiny_config


def evaluated(model, params, config):
    return EvaluatedModel(
        config, model, params, 0, "none", SimpleNamespace(progress=False), lambda: None
    )


def dropped(params):
    """Without the parameters of content gates."""
    if not isinstance(params, dict):
        return params
    gone = ("content_up", "content_down")
    return {name: dropped(leaf) for name, leaf in params.items() if name not in gone}


@pytest.fixture(scope="module")
def carve():
    config = tiny_config(model__pattern=("carve",))
    model = LanguageModel(make_model_config(config))
    params = random_parameters(model, jnp.zeros((1, 1), jnp.int32))
    return evaluated(model, params, config)


def test_without_content_it_is_the_model_that_never_had_any(carve):
    found = content_use(carve, Options()).metrics
    assert found["loss"] == held_out_perplexity(carve, Options()).metrics["loss"]
    changes = dataclasses.replace(carve.model.config.gates, content=False)
    blind = LanguageModel(dataclasses.replace(carve.model.config, gates=changes))
    never = evaluated(blind, dropped(carve.params), carve.config)
    expected = held_out_perplexity(never, Options()).metrics["loss"]
    assert found["loss_without_content"].value == pytest.approx(expected.value, rel=1e-5)
    gain = found["loss_without_content"].value - found["loss"].value
    assert found["content_gain"].value == pytest.approx(gain)
    assert abs(gain) > 1e-4
    assert 1e-4 < found["gate_shift"].value < 1
    assert found["gate_shift"].count == 4
    assert 1e-4 < found["up_gradient_share"].value < 1


def test_the_gradients_share_is_that_of_the_scored_loss(carve):
    pipeline = build_pipeline(read_batches(carve.config), carve.model.config)
    batch = dict(next(iter(pipeline.eval_batches())))

    def loss(up, others):
        params = traverse_util.unflatten_dict(up | others)
        return (batch["loss_mask"] * token_scores(carve.model, params, batch)[0]).sum()

    flat = traverse_util.flatten_dict(carve.params)
    up = {path: leaf for path, leaf in flat.items() if path[-1] == "content_up"}
    others = {path: leaf for path, leaf in flat.items() if path not in up}
    by_up, by_others = (float(optax.tree.norm(g)) for g in jax.grad(loss, (0, 1))(up, others))
    share = float(up_gradient_share(carve.model, carve.params, batch))
    assert share == pytest.approx(by_up / math.hypot(by_up, by_others), rel=1e-4)


def test_a_gate_at_its_start_is_moved_by_nothing(carve):
    blind = without_content(carve.params)
    found = content_use(carve._replace(params=blind), Options(limit=2)).metrics
    assert found["content_gain"].value == found["gate_shift"].value == 0.0
    assert found["loss"].count == 2


def test_the_gate_of_the_layer_below_is_told_from_a_blind_one():
    config = tiny_config(model__pattern=("carve",), model__layers=2)
    changes = GateChanges(content_source="previous_layer", gate_chunk=4)
    model = LanguageModel(dataclasses.replace(make_model_config(config), gates=changes))
    params = random_parameters(model, jnp.zeros((1, 1), jnp.int32))
    row = np.arange(12) % model.config.vocab_size
    read, blind = trace(model, params, row), trace(model, without_content(params), row)
    np.testing.assert_allclose(read.blind_erase[0], read.erase[0], atol=1e-6)
    assert np.abs(read.blind_erase[1] - read.erase[1]).max() > 1e-3
    assert gate_shift(read) > gate_shift(blind) == pytest.approx(0.0, abs=1e-7)


def test_models_without_content_are_refused():
    config = tiny_config(model__pattern=("gdn2",))
    model = LanguageModel(make_model_config(config))
    params = jax.eval_shape(lambda: random_parameters(model, jnp.zeros((1, 1), jnp.int32)))
    with pytest.raises(UserError, match=r"pattern=\('gdn2',\) has none"):
        content_use(evaluated(model, params, config), Options())
