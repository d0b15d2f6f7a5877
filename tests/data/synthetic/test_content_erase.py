"""One layer whose erase gate sees content solves the task; its weights are chosen by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax import carve_rule
from carve_jax.data import DataConfig
from carve_jax.data.synthetic.content_erase import (
    ACCUMULATE,
    FIRST_KEY,
    MINUS,
    PLUS,
    REPLACE,
    ContentErase,
)

PAIRS, WRITES, LENGTH, CHUNK = 6, 5, 80, 8


def by_hand(tokens):
    """A layer's query, key, value [T, ·] and write [T]: functions of a row's last two tokens."""
    mode_row = PAIRS  # of the state: one row per key, and one for the mode
    query, key = np.zeros((2, LENGTH, PAIRS + 1))
    value, write = np.zeros((LENGTH, 2)), np.zeros(LENGTH)
    query[:, mode_row] = 1.0
    key[0, mode_row], value[0, 1], write[0] = 1.0, 1.0 if tokens[0] == REPLACE else -1.0, 1.0
    for place, (before, token) in enumerate(itertools.pairwise(tokens), 1):
        if token in (MINUS, PLUS):
            key[place, before - FIRST_KEY], write[place] = 1.0, 1.0
            value[place, 0] = -1.0 if token == MINUS else 1.0
        elif before >= FIRST_KEY or place >= LENGTH - PAIRS:
            query[place] = np.eye(PAIRS + 1)[token - FIRST_KEY]
    return query, key, value, write[:, None]


def answers(rows, content):
    """Outputs at the queries [B, N] of one head whose gate opens or shuts with the content."""
    query, key, value, write = (
        jnp.asarray(np.stack(x)[:, :, None], jnp.float32)
        for x in zip(*map(by_hand, rows), strict=True)
    )
    none = jnp.zeros_like(key)
    down = jnp.array([[[0.0], [1.0]]])  # the outputs' channel that holds the mode
    up = content * jnp.array([[[1.0] * PAIRS + [0.0]]])
    run = jax.jit(carve_rule, static_argnames=("scale", "gate_chunk", "implementation"))
    options = {"scale": 1.0, "gate_chunk": CHUNK, "implementation": "recurrent"}
    output, _ = run(query, key, value, none, none, write, down, up, **options)
    return np.asarray(output)[:, -PAIRS:, 0, 0]


@pytest.fixture
def rows():
    settings = DataConfig(
        source="content_erase",
        vocab_size=FIRST_KEY + PAIRS,
        num_pairs=PAIRS,
        num_writes=WRITES,
    )
    task = ContentErase(settings, LENGTH)
    return [task.example(np.random.default_rng(seed)) for seed in range(12)]


def test_one_content_aware_layer_answers_everything_by_hand(rows):
    tokens = np.stack([row.tokens for row in rows])
    assert set(tokens[:, 0].tolist()) == {REPLACE, ACCUMULATE}
    said = np.where(answers(tokens, content=40.0) > 0, PLUS, MINUS)
    np.testing.assert_array_equal(said, [row.targets[-PAIRS:] for row in rows])


def test_without_content_the_mode_changes_no_answer(rows):
    tokens = np.stack([row.tokens for row in rows])
    other = tokens.copy()
    other[:, 0] = REPLACE + ACCUMULATE - tokens[:, 0]
    np.testing.assert_array_equal(answers(tokens, 0.0), answers(other, 0.0))
    assert np.all(np.any(answers(tokens, 40.0) != answers(other, 40.0), axis=1))
