"""One triangular solve per tile: what the key axis buys, and what an erase mask on values costs.

With a mask c on the value axis the residual of channel v obeys (I + Diag(c_v) T) R_v = Z_v −
Diag(c_v) Ē S_0, in the notation of `carve_jax.ops.gated_delta.chunked`: a matrix for each distinct
column of c, of which the rule's own (c = 1) is one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from carve_jax.ops.gated_delta import tiles, value_axis_erase_rule
from experiments.measuring.timing import contender, median_seconds
from experiments.theory.figures import INK, label, legend, panels, style
from experiments.theory.finding import Check, Experiment, Finding, Number

EXACT = 1e-12  # of float64, relative
SPREADS = (0.0, 1e-3, 1e-2, 0.1, 0.3, 0.6, 1.0)


class Tile(NamedTuple):
    """One head's tokens of a tile, float64, and the state before it."""

    key: np.ndarray  # [C, K], unit rows
    value: np.ndarray  # [C, V]
    log_decay: np.ndarray  # [C, K]
    erase: np.ndarray  # [C, K]
    write: np.ndarray  # [C, V]
    memory: np.ndarray  # [K, V]


def random_tile(rng: np.random.Generator, tokens: int, channels: int, values: int) -> Tile:
    """Unit keys, gates uniform in [0, 1], decays of about 4% per token, and one
    hard reset in 200 tokens."""
    key = rng.normal(size=(tokens, channels))
    decay = -0.05 * np.logaddexp(0, rng.normal(size=(tokens, channels)))
    return Tile(
        key=key / np.linalg.norm(key, axis=-1, keepdims=True),
        value=rng.normal(size=(tokens, values)),
        log_decay=np.where(rng.random(decay.shape) < 0.005, -1000.0, decay),
        erase=rng.random((tokens, channels)),
        write=rng.random((tokens, values)),
        memory=rng.normal(size=(channels, values)),
    )


def scores(tile: Tile) -> np.ndarray:
    """T: decayed scores of erased keys and earlier keys, strictly lower [C, C]."""
    total = np.cumsum(tile.log_decay, axis=0)
    earlier = np.tri(len(total), k=-1, dtype=bool)[..., None]
    decay = np.exp(np.where(earlier, total[:, None] - total[None], -np.inf))
    return np.einsum("rk,sk,rsk->rs", tile.erase * tile.key, tile.key, decay)


def inverses(tile: Tile, mask: np.ndarray) -> np.ndarray:
    """(I + Diag(c_v) T)^{-1} of every channel, [V, C, C]."""
    return np.linalg.inv(np.eye(len(mask)) + mask.T[:, :, None] * scores(tile)[None])


def state_after(tile: Tile, mask: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """The state after the tile, [K, V], by `inverse`: [V, C, C], or [1, C, C] for all channels."""
    total = np.cumsum(tile.log_decay, axis=0)
    found = (np.exp(total) * tile.erase * tile.key) @ tile.memory
    right = tile.write * tile.value - mask * found
    inverse = np.broadcast_to(inverse, (right.shape[1], *inverse.shape[1:]))
    residual = np.einsum("vrs,sv->rv", inverse, right)
    tail = tile.key * np.exp(total[-1] - total)
    return np.exp(total[-1])[:, None] * tile.memory + tail.T @ residual


@jax.jit
def _token_by_token(memory: jax.Array, *row: jax.Array) -> jax.Array:
    return value_axis_erase_rule(row[0], *row, initial_state=memory)[1]


def oracle(tile: Tile, mask: np.ndarray) -> np.ndarray:
    """The state after the tile, token by token in float64."""
    with jax.enable_x64(True):
        row = [jnp.asarray(x)[None, :, None] for x in (*tile[:-1], mask)]
        return np.asarray(_token_by_token(jnp.asarray(tile.memory)[None, None], *row))[0, 0]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Distance over the norm of what was expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def single_solve_error(tile: Tile, mask: np.ndarray) -> float:
    """Error of the state if one matrix serves every channel, and it is the best one.

    Of all matrices the mean of the channels' inverses is nearest to them, and so makes the least
    mean square error for right-hand sides that are white noise.
    """
    every = inverses(tile, mask)
    return relative(state_after(tile, mask, every.mean(0, keepdims=True)), oracle(tile, mask))


def distinct(matrices: np.ndarray) -> int:
    """How many of the matrices differ from one another."""
    return len(np.unique(np.round(matrices.reshape(len(matrices), -1), 9), axis=0))


def least_error_of_two() -> float:
    """Two tokens of one key, whose second erases in one value channel and not in the other.

    Channel 0 must subtract the first residual from the second, channel 1 must not: whatever the one
    matrix has there, one of the channels is off by half of their difference.
    """
    one = np.ones((2, 1))
    pair = Tile(one, np.ones((2, 2)), 0 * one, one, np.ones((2, 2)), np.zeros((1, 2)))
    first, second = inverses(pair, np.array([[1.0, 1.0], [1.0, 0.0]]))
    return float(np.abs(first - second).max() / 2)


def seconds_of_solves(tokens: int, channels: int, repeats: int) -> dict[str, float]:
    """Time of the residuals of 16 tiles, float32, K = V, as `chunked` finds them: the inverse by
    doubling, then a product; of one inverse, and of one for each value channel."""
    shape = (16, tokens, channels)
    key, *keys = jax.random.split(jax.random.key(0), 5)
    keys_, erased, right = (jax.random.normal(k, shape) / channels**0.5 for k in keys[:3])
    decay = -jax.nn.softplus(jax.random.normal(key, shape))
    mask = jax.random.uniform(keys[3], shape)

    def inverse(keys: jax.Array, erased: jax.Array, decay: jax.Array) -> jax.Array:
        factors = tiles.decay_factors(decay)
        rows, columns = tiles.upper_halves(erased, factors), tiles.lower_halves(keys, factors)
        return tiles.unit_inverse(rows, columns)

    def one(keys: jax.Array, erased: jax.Array, decay: jax.Array, right: jax.Array) -> jax.Array:
        return tiles.matmul("nrs,nsv->nrv", inverse(keys, erased, decay), right)

    def each(
        keys: jax.Array, erased: jax.Array, decay: jax.Array, right: jax.Array, mask: jax.Array
    ) -> jax.Array:
        systems = jax.vmap(
            lambda column: inverse(keys, column[..., None] * erased, decay), in_axes=2
        )(mask)
        return tiles.matmul("vnrs,nsv->nrv", systems, right)

    arguments = (keys_, erased, decay, right)
    contenders = {"one": contender(one, *arguments), "each": contender(each, *arguments, mask)}
    return median_seconds(contenders, repeats)


def measure(quick: bool) -> Finding:
    """Errors of one and of V solves, counts of distinct systems, and times."""
    tokens, channels, values, draws = (16, 8, 8, 2) if quick else (64, 32, 32, 8)
    rng = np.random.default_rng(0)
    drawn = [random_tile(rng, tokens, channels, values) for _ in range(draws)]
    noise = rng.random((tokens, values))

    ones = np.ones((tokens, values))
    key_axis = max(single_solve_error(tile, ones) for tile in drawn)
    by_token = rng.random((tokens, 1)) * ones  # the same for every channel: b takes it in
    shared = max(single_solve_error(tile, by_token) for tile in drawn)
    each = max(
        relative(state_after(tile, noise, inverses(tile, noise)), oracle(tile, noise))
        for tile in drawn
    )
    spread = [
        float(np.mean([single_solve_error(t, 1 - s * noise) for t in drawn])) for s in SPREADS
    ]
    groups = [2**i for i in range(values.bit_length()) if 2**i <= values]
    systems = [
        distinct(inverses(drawn[0], np.repeat(noise[:, :count], values // count, axis=1)))
        for count in groups
    ]
    seconds = seconds_of_solves(tokens, channels, 3 if quick else 9)
    counterexample = least_error_of_two()
    checks = (
        Check("error of one solve, key axis", key_axis, at_most=EXACT),
        Check("error of one solve, mask the same in all channels", shared, at_most=EXACT),
        Check("error of V solves, any mask", each, at_most=EXACT),
        Check("error of the best one solve, mask uniform in [0, 1]", spread[-1], at_least=1e-3),
        Check("error of any one matrix on two tokens", counterexample, at_least=0.1),
        Check(
            "distinct systems less groups of channels",
            max(abs(found - count) for found, count in zip(systems, groups, strict=True)),
            at_most=0,
        ),
    )
    return Finding(
        title="Erase on the key axis, and on no other, needs one solve per tile",
        found=f"One solve serves all {values} value channels on the key axis "
        f"(error {key_axis:.0e}); under a value mask the best one solve is off by "
        f"{spread[-1]:.0%}",
        claim="An erase gate on the key axis is sufficient for one WY solve per tile (exact to "
        "float64 whatever the gates), and an erase mask on the value axis makes as many different "
        "triangular systems as it has different columns: one matrix is then wrong, however it is "
        "chosen, and V solves are exact.",
        setup=f"{draws} random tiles of {tokens} tokens, K {channels}, V {values}, one log-decay "
        "in 200 a hard reset of -1000, float64 against the recurrence; seed 0",
        checks=checks,
        numbers=(
            Number("error of one solve, key axis", key_axis, "relative"),
            Number("error of V solves, value mask", each, "relative"),
            Number("error of the best one solve, value mask", spread[-1], "relative"),
            Number("FLOPs of V inverses over one", float(values), "times"),
            Number("time of one inverse, 16 tiles", 1e3 * seconds["one"], "ms"),
            Number("time of V inverses, 16 tiles", 1e3 * seconds["each"], "ms"),
            Number("time of V inverses over one", seconds["each"] / seconds["one"], "times"),
        ),
        curves={"spread": spread, "groups": groups, "systems": systems},
    )


def draw(figure: Figure, finding: Finding) -> None:
    """Error of one solve by the spread of the mask; systems by groups of channels."""
    left, right = panels(figure, 2)
    left.plot(SPREADS, finding.curves["spread"], label="the best one matrix", **style(1))
    left.axhline(EXACT, color=INK, linestyle=":", label="exact to float64")
    left.set_xscale("symlog", linthresh=1e-3)
    left.set_xlim(0, 1.1)
    left.set_yscale("log")
    legend(left)
    label(left, "spread of the value mask around 1", "relative error of the state", "One solve")
    groups = finding.curves["groups"]
    right.plot(groups, finding.curves["systems"], label="found", **style(0))
    right.plot(groups, groups, ":", color=INK, label="one per group")
    right.set_xscale("log", base=2)
    right.set_yscale("log", base=2)
    legend(right)
    label(right, "groups of value channels with a mask of their own", "different systems")


EXPERIMENT = Experiment(measure, draw)
