"""The chunked loss equals the plain one and needs a fraction of its memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.training.loss import LossSums, next_token_loss, report

VOCAB, WIDTH = 50, 8


@functools.partial(jax.jit, static_argnums=(0, 1))
def inputs(batch, length, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (batch, length, WIDTH))
    kernel = jax.random.normal(keys[1], (WIDTH, VOCAB))
    targets = jax.random.randint(keys[2], (batch, length), 0, VOCAB)
    mask = jax.random.bernoulli(keys[3], 0.7, (batch, length)).astype(jnp.float32)
    return hidden, kernel, targets, mask


@functools.partial(jax.jit, static_argnums=(4, 5))
def chunked(hidden, kernel, targets, mask, loss_chunk, z_loss=0.0):
    size = jnp.full(targets.shape, 3, jnp.int32)
    return next_token_loss(
        lambda x: x @ kernel, hidden, targets, mask, size, loss_chunk=loss_chunk, z_loss=z_loss
    )


@jax.jit
def plain(hidden, kernel, targets, mask, z_loss=0.0):
    logits = hidden @ kernel
    log_p = jax.nn.log_softmax(logits)
    nats = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    penalty = z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
    return jnp.sum(mask * nats), jnp.sum(mask * penalty), logits


@pytest.mark.parametrize(("length", "loss_chunk"), [(16, 8), (13, 8), (16, 1000), (5, 1)])
def test_sums_equal_the_plain_loss(length, loss_chunk):
    hidden, kernel, targets, mask = inputs(2, length)
    sums = chunked(hidden, kernel, targets, mask, loss_chunk, z_loss=0.01)
    nats, penalty, logits = plain(hidden, kernel, targets, mask, z_loss=0.01)
    np.testing.assert_allclose(sums.nats, nats, rtol=1e-5)
    np.testing.assert_allclose(sums.penalty, penalty, rtol=1e-5)
    assert sums.tokens == mask.sum()
    assert sums.bytes == 3 * mask.sum()
    assert sums.correct == (mask * (logits.argmax(-1) == targets)).sum()


def test_a_tie_is_not_right():
    hidden, kernel, targets, mask = inputs(2, 5)
    collapsed = chunked(hidden, jnp.zeros_like(kernel), targets, mask, 8)
    np.testing.assert_allclose(collapsed.nats, mask.sum() * math.log(VOCAB), rtol=1e-6)
    assert collapsed.correct == 0


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_gradients_equal_the_plain_ones(z_loss):
    hidden, kernel, targets, mask = inputs(2, 13)

    def chunked_objective(hidden, kernel):
        sums = chunked(hidden, kernel, targets, mask, 8, z_loss)
        return sums.nats + sums.penalty

    def plain_objective(hidden, kernel):
        nats, penalty, _ = plain(hidden, kernel, targets, mask, z_loss)
        return nats + penalty

    found = jax.jit(jax.grad(chunked_objective, (0, 1)))(hidden, kernel)
    expected = jax.jit(jax.grad(plain_objective, (0, 1)))(hidden, kernel)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_masked_tokens_do_not_count_even_if_infinite():
    hidden, kernel, targets, mask = inputs(1, 8)
    mask = mask.at[0, 3].set(0.0)
    changed = targets.at[0, 3].set((targets[0, 3] + 1) % VOCAB)
    before = chunked(hidden, kernel, targets, mask, 4)
    after = chunked(hidden, kernel, changed, mask, 4)
    assert before == after


def test_memory_is_that_of_a_chunk():
    batch, length, width, vocab = 4, 512, 32, 4096
    shapes = (
        jax.ShapeDtypeStruct((batch, length, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
    )
    targets, mask = jnp.zeros((batch, length), jnp.int32), jnp.ones((batch, length))

    def temporary_bytes(objective):
        compiled = jax.jit(jax.grad(objective, (0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small = temporary_bytes(lambda h, k: chunked(h, k, targets, mask, 128).nats)
    large = temporary_bytes(lambda h, k: plain(h, k, targets, mask)[0])
    all_logits = 4 * batch * length * vocab
    assert large >= all_logits
    assert small < large / 16  # logits of a sixteenth of the tokens


def test_report_gives_nats_a_token_and_bits_a_byte():
    sums = LossSums(*map(np.float32, (6.0, 3.0, 12.0, 1.0, 0.5)))
    assert report(sums) == {
        "loss": 2.0,
        "bits_per_byte": pytest.approx(6.0 / (math.log(2) * 12.0)),
    }
    assert "bits_per_byte" not in report(sums._replace(bytes=np.float32(0)))


def test_logits_are_computed_once():
    hidden, kernel, targets, mask = inputs(2, 16)

    def products(objective):
        text = str(jax.make_jaxpr(jax.grad(objective, (0, 1)))(hidden, kernel))
        return text.count("dot_general")

    # Logits, and the gradients of the hidden states and of the kernel; nothing a second time.
    assert products(lambda h, k: chunked(h, k, targets, mask, 8).nats) == 3


def test_a_gradient_of_half_of_the_objective_is_refused():
    hidden, kernel, targets, mask = inputs(2, 5)
    for one in ("nats", "penalty"):
        with pytest.raises(ValueError, match="differentiate their sum"):
            jax.grad(lambda h, one=one: getattr(chunked(h, kernel, targets, mask, 8, 0.1), one))(
                hidden
            )

    def weighted(h, weight):
        sums = chunked(h, kernel, targets, mask, 8, 0.1)
        return 2.0 * sums.nats + weight * sums.penalty

    assert jnp.isnan(jax.grad(weighted)(hidden, 1.0)).all()
    assert jnp.isfinite(jax.grad(weighted)(hidden, 2.0)).all()
    counts = jax.grad(lambda h: chunked(h, kernel, targets, mask, 8, 0.1).tokens)(hidden)
    assert not counts.any()


def test_a_factor_before_the_loss_reaches_the_gradients():
    hidden, kernel, targets, mask = inputs(2, 5)

    def times(factor):
        return jax.grad(lambda h: factor * chunked(h, kernel, targets, mask, 8).nats)(hidden)

    np.testing.assert_allclose(times(-0.5), -0.5 * times(1.0), rtol=1e-6)
