"""A CARVE layer in a plain Flax model, trained by an Optax loop.

The task is recall: a row holds pairs of a key and a value, then one of the keys again, and the
model says the value that belonged to it. Only the mixer carries anything from token to token.

Command: python -m examples.layer_in_flax
Run time: about a minute of a CPU core, most of it compilation.
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from carve_jax import MIXERS

PAIRS, KEYS, VALUES = 4, 16, 8


class Recall(nn.Module):
    """Embedding, a residual CARVE layer, and logits of the value."""

    @nn.compact
    def __call__(self, tokens):
        """Logits [batch, VALUES] of the value asked for, from tokens [batch, time]."""
        x = nn.Embed(KEYS + VALUES, 32)(tokens)
        mixed, _ = MIXERS["carve"](num_heads=2, key_dim=16, value_dim=16)(nn.LayerNorm()(x))
        x = x + mixed
        return nn.Dense(VALUES)(x[:, -1])


def make_batch(rng, rows):
    """Rows of tokens, and of each the value that belongs to its last key."""
    of_keys, of_values, of_query = jax.random.split(rng, 3)
    order = jax.vmap(lambda key: jax.random.permutation(key, KEYS)[:PAIRS])
    keys = order(jax.random.split(of_keys, rows))
    values = jax.random.randint(of_values, (rows, PAIRS), 0, VALUES)
    asked = jax.random.randint(of_query, (rows, 1), 0, PAIRS)
    pairs = jnp.stack([keys, KEYS + values], axis=2).reshape(rows, 2 * PAIRS)
    query = jnp.take_along_axis(keys, asked, axis=1)
    return jnp.concatenate([pairs, query], axis=1), jnp.take_along_axis(values, asked, axis=1)[:, 0]


def main(steps: int = 300, rows: int = 64) -> float:
    """Trains, prints the accuracy on the way, and returns the last."""
    model, optimizer = Recall(), optax.adamw(3e-3)
    params = jax.jit(model.init)(jax.random.key(0), make_batch(jax.random.key(1), rows)[0])

    @jax.jit
    def step(params, state, rng):
        tokens, wanted = make_batch(rng, rows)

        def loss_of(params):
            logits = jnp.asarray(model.apply(params, tokens))
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean()
            return loss, (logits.argmax(axis=-1) == wanted).mean()

        (loss, accuracy), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss, accuracy

    state = optimizer.init(params)
    for number in range(1, steps + 1):
        rng = jax.random.fold_in(jax.random.key(2), number)
        params, state, loss, accuracy = step(params, state, rng)
        if number % 100 == 0 or number == steps:
            print(f"step {number}: loss {loss:.3f}, accuracy {accuracy:.2f}")
    return float(accuracy)


if __name__ == "__main__":
    main()
