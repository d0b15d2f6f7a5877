"""Parameters for tests, made without compiling an initialiser."""

import jax
import jax.numpy as jnp
import numpy as np

CENTRE = {"dt_bias": -3.0, "o_norm": 1.0, "scale": 1.0}


def random_parameters(module, *inputs):
    """Parameters of the shapes of `module.init`, each with a part in the result."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    random = np.random.default_rng(0)

    def fill(path, leaf):
        values = CENTRE.get(path[-1].key, 0.0) + 0.3 * random.normal(size=leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map_with_path(fill, shapes)


def random_normal(*shape, seed=0):
    """Inputs for tests."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_tokens(*shape, below, seed=0):
    """Tokens for tests."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, below, size=shape), jnp.int32)
