"""Transitions of the state, I − k(b⊙k)ᵀ, and a search for products of them that grow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

SQUARINGS = 4
RESTARTS = 32


def transitions(keys: np.ndarray, erase: np.ndarray) -> np.ndarray:
    """I − k(b⊙k)ᵀ of every token: [..., K] twice to [..., K, K]; decay 0."""
    return np.eye(keys.shape[-1]) - keys[..., :, None] * (erase * keys)[..., None, :]


def growth(keys: np.ndarray, erase: np.ndarray) -> float:
    """Growth per token if these tokens [n, K] are repeated for ever: ρ(product)^(1/n)."""
    product = functools.reduce(lambda before, each: each @ before, transitions(keys, erase))
    return float(np.abs(np.linalg.eigvals(product)).max() ** (1 / len(keys)))


def norms(keys: np.ndarray, erase: np.ndarray) -> np.ndarray:
    """Spectral norm of each transition."""
    return np.linalg.norm(transitions(keys, erase), ord=2, axis=(-2, -1))


def spectral_radii(keys: np.ndarray, erase: np.ndarray) -> np.ndarray:
    """Largest |eigenvalue| of each transition."""
    return np.abs(np.linalg.eigvals(transitions(keys, erase))).max(-1)


def random_tokens(
    rng: np.random.Generator, shape: tuple[int, ...], scale: float = 1.0, corners: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Unit keys of uniform direction, and erase gates uniform in [0, scale], or at its ends."""
    keys = rng.normal(size=shape)
    erase = rng.random(shape)
    return keys / np.linalg.norm(keys, axis=-1, keepdims=True), scale * (
        np.round(erase) if corners else erase
    )


def _tokens(free: dict[str, jax.Array], scale: float) -> tuple[jax.Array, jax.Array]:
    keys = free["key"] / jnp.linalg.norm(free["key"], axis=-1, keepdims=True)
    return keys, scale * jnp.sin(free["erase"]) ** 2


def _log_growth(free: dict[str, jax.Array], scale: float) -> jax.Array:
    """Logarithm, per token, of the norm of the product repeated 2^SQUARINGS times; smooth."""
    keys, erase = _tokens(free, scale)
    count, channels = keys.shape
    steps = jnp.eye(channels)[None] - keys[:, :, None] * (erase * keys)[:, None, :]
    product = functools.reduce(lambda before, each: each @ before, list(steps))
    total = jnp.zeros(())
    for squaring in range(SQUARINGS):
        norm = jnp.linalg.norm(product)
        total += jnp.log(norm) * 2.0 ** (SQUARINGS - squaring)
        product = (product / norm) @ (product / norm)
    return (total + jnp.log(jnp.linalg.norm(product))) / (count * 2.0**SQUARINGS)


@functools.partial(jax.jit, static_argnames=("channels", "period", "steps"))
def _climb(
    seed: jax.Array, channels: int, period: int, steps: int, scale: float
) -> tuple[jax.Array, jax.Array]:
    optimizer = optax.adam(0.03)
    first, second = jax.random.split(seed)
    shape = (RESTARTS, period, channels)
    free = {
        "key": jax.random.normal(first, shape),
        "erase": jax.random.uniform(second, shape, maxval=np.pi / 2),
    }
    ascent = jax.vmap(jax.grad(lambda x: -_log_growth(x, scale)))

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        free, state = carry
        updates, state = optimizer.update(ascent(free), state)
        return (optax.apply_updates(free, updates), state), None

    (free, _), _ = jax.lax.scan(step, (free, optimizer.init(free)), None, length=steps)
    return jax.vmap(lambda x: _tokens(x, scale))(free)


def fastest(
    channels: int, period: int, *, scale: float, steps: int, seed: int = 0
) -> tuple[float, np.ndarray, np.ndarray]:
    """The fastest growth per token that gradient ascent finds, with its keys and erase gates.

    Adam from 32 starts on the norm of the repeated product; what is returned is ρ^(1/period) of the
    product in float64, a lower bound of what any sequence of tokens can reach.
    """
    keys, erase = _climb(jax.random.key(seed), channels, period, steps, scale)
    keys, erase = np.asarray(keys, np.float64), np.asarray(erase, np.float64)
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    erase = np.clip(erase, 0.0, scale)
    rates = [growth(k, b) for k, b in zip(keys, erase, strict=True)]
    best = int(np.argmax(rates))
    return rates[best], keys[best], erase[best]
