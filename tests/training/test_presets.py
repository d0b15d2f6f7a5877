"""Every preset learns associative recall, and decodes exactly what its forward pass says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.generate import generate
from carve_jax.mixers import FAMILY, MIXERS
from carve_jax.training.run import build
from tests.training.helpers import tiny_config

STEPS = 200
# Keys and values are ten each and an example has two pairs: a uniform guess costs ln 10 = 2.3 nats,
# a guess between the values seen 0.7. The delta rule gets beyond that in as few steps as these.
BETTER_THAN_CHANCE, DELTA = 1.6, 0.9


def losses(run, state):
    """Nats an answer at every step, and the state after the last."""
    batches, sums = run.pipeline.train_iterator(), []
    for _ in range(STEPS):
        state, metrics = run.train_step(state, next(batches))
        sums.append(metrics.sums)
    return np.array([float(s.nats) / float(s.tokens) for s in sums]), state


# Their gradients and decoding are tested in tests/mixers and tests/model too.
@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
def test_trains_on_associative_recall_and_decodes_its_forward_pass(name):
    config = tiny_config(
        model__pattern=(name,),
        model__layers=2,
        model__key_dim=16,
        model__value_dim=16,
        model__window=12,
        model__implementation="recurrent",  # It compiles fastest; tests/ops compares them all.
        data__num_pairs=2,
        data__vocab_size=20,
        sequence_length=16,
        batch_size=32,
        steps=STEPS,
    )
    run = build(config)
    found, state = losses(run, run.init())
    assert found[0] > 4
    erases = name in FAMILY and FAMILY[name].gates.erase != "none"
    assert found[-20:].mean() < (DELTA if erases else BETTER_THAN_CHANCE)

    prompts = jnp.asarray(next(run.pipeline.train_iterator())["tokens"][:3, :9])
    new = generate(run.model, state.params, prompts, max_new_tokens=7)
    whole = jnp.concatenate([prompts, new], axis=1)
    logits, _ = jax.jit(run.model.apply)({"params": state.params}, whole)
    np.testing.assert_array_equal(new, jnp.argmax(logits[:, 8:-1], axis=-1))
