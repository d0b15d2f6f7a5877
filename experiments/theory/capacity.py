"""How many pairs a memory holds: error of reading back all that was stored, for every mixer.

Error is 1 − (Σ o·v)² / (Σ o² Σ v²): what is left of the values once the reads are scaled as best
they can be, so that gates that merely shrink a memory cost nothing. With random unit keys each of N
pairs adds noise of 1/K of a value to every other, so that linear attention errs by x / (1 + x),
x = (N − 1) / K.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from carve_jax.mixers import FAMILY
from carve_jax.mixers.gates import init_a_log, init_dt_bias, retention_log_decay
from carve_jax.ops.gated_delta import carve_rule, gated_delta_rule
from experiments.theory.figures import INK, label, legend, panels, style
from experiments.theory.finding import Check, Experiment, Finding, Number

LOADS = (0.25, 0.5, 1.0, 1.5, 2.0, 4.0)  # pairs per key channel
TIMES = (1, 2, 4)  # writes of each key
VALUES = 16
OPEN = 6.0  # logit of a gate that is all but open
EXACT = 1e-5  # of float32


def log_decay(name: str, rows: int, channels: int) -> jax.Array:
    """A mixer's log-decay as its layer starts, the same for all tokens: [rows, 1, 1, K or 1]."""
    spec = FAMILY[name].gates
    if spec.decay == "none":
        return jnp.zeros((rows, 1, 1, 1))
    if spec.decay == "constant":
        return jnp.resize(retention_log_decay(8), (rows,)).reshape(rows, 1, 1, 1)
    width = channels if spec.decay == "channel" else 1
    if spec.decay_form == "logsigmoid":
        return jnp.full((rows, 1, 1, width), float(np.log(0.5)) / 16)
    rate = jnp.exp(init_a_log(jax.random.key(1), (rows, 1)))
    step = jax.nn.softplus(init_dt_bias(jax.random.key(2), (rows * width,)).reshape(rows, width))
    return -(rate * step)[:, None, None]


@jax.jit
def _run_rule(key: jax.Array, value: jax.Array, decay: jax.Array, erase: jax.Array) -> jax.Array:
    write = jnp.ones((*key.shape[:3], 1))
    return gated_delta_rule(key, key, value, decay, erase, write, implementation="recurrent")[1]


@jax.jit
def _run_carve(key: jax.Array, value: jax.Array, decay: jax.Array) -> jax.Array:
    channels = key.shape[-1]
    down = 0.3 * jax.random.normal(jax.random.key(3), (1, VALUES, 8))
    up = 0.3 * jax.random.normal(jax.random.key(4), (1, 8, channels))
    logits, write = jnp.full_like(key, OPEN), jnp.ones((*key.shape[:3], 1))
    return carve_rule(key, key, value, decay, logits, write, down, up, implementation="recurrent")[
        1
    ].memory


def stored(name: str, key: jax.Array, value: jax.Array) -> jax.Array:
    """The state [rows, K, V] after the pairs, in order; gates open, decay as initialised.

    Args:
      name: a mixer of the gated delta family.
      key, value: [rows, N, K] and [rows, N, V].
    """
    rows, count, channels = key.shape
    # Empty tokens come first, so that every N is one program: they leave an empty state empty.
    empty = ((0, 0), (int(LOADS[-1] * channels) - count, 0), (0, 0))
    key, value = jnp.pad(key, empty)[:, :, None], jnp.pad(value, empty)[:, :, None]
    decay = jnp.broadcast_to(log_decay(name, rows, channels), key.shape)
    if FAMILY[name].gates.content:
        return _run_carve(key, value, decay)[:, 0]
    erase = jnp.full_like(key, FAMILY[name].gates.erase != "none")
    return _run_rule(key, value, decay, erase)[:, 0]


def pairs(rows: int, count: int, channels: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Random unit keys and normal values."""
    first, second = jax.random.split(jax.random.key(seed))
    key = jax.random.normal(first, (rows, count, channels))
    key /= jnp.linalg.norm(key, axis=-1, keepdims=True)
    return key, jax.random.normal(second, (rows, count, VALUES))


def orthogonal(key: jax.Array) -> jax.Array:
    """Keys turned orthonormal; at most K of them."""
    return jnp.swapaxes(jnp.linalg.qr(jnp.swapaxes(key, 1, 2))[0], 1, 2)


def read_error(memory: jax.Array, key: jax.Array, value: jax.Array) -> float:
    """Error of reading every key, after the best common scale."""
    read = np.asarray(jnp.einsum("rkv,rnk->rnv", memory, key, precision="highest"), np.float64)
    given = np.asarray(value, np.float64)
    squares = max(np.square(read).sum() * np.square(given).sum(), np.finfo(float).tiny)
    return float(1 - (read * given).sum() ** 2 / squares)


def last_error(memory: jax.Array, key: jax.Array, value: jax.Array) -> float:
    """Largest error, unscaled, of the pair written last, over the largest value."""
    read = jnp.einsum("rkv,rk->rv", memory, key[:, -1], precision="highest")
    return float(jnp.abs(read - value[:, -1]).max() / jnp.abs(value[:, -1]).max())


def rewritten(name: str, channels: int, rows: int, times: int) -> float:
    """Error of the last values after K/2 orthogonal keys are written `times` times over."""
    half = channels // 2
    key, value = pairs(rows, half * times, channels)
    key = jnp.tile(orthogonal(key[:, :half]), (1, times, 1))
    return read_error(stored(name, key, value), key[:, -half:], value[:, -half:])


def curve(name: str, channels: int, rows: int) -> list[float]:
    """Error by load."""
    errors = []
    for load in LOADS:
        key, value = pairs(rows, int(load * channels), channels)
        errors.append(read_error(stored(name, key, value), key, value))
    return errors


def linear_theory(count: np.ndarray, channels: int) -> np.ndarray:
    """Error of linear attention."""
    noise = (count - 1) / channels
    return noise / (1 + noise)


class Sizes(NamedTuple):
    """What is measured.

    Attributes:
      rows: of the batch.
      names: of mixers.
      channels: K.
      delta_channels: K of the delta rule's curves; the last is `channels`.
    """

    rows: int
    names: tuple[str, ...]
    channels: int
    delta_channels: tuple[int, ...]


FULL = Sizes(
    16,
    # Those with gates that can stand fully open.
    ("linear_attention", "retnet", "gla", "mamba2", "deltanet", "gdn", "kda", "gdn2", "carve"),
    64,
    (16, 32, 64),
)
QUICK = Sizes(4, ("linear_attention", "deltanet", "carve"), 16, (16,))


class Measured(NamedTuple):
    """What was found.

    Attributes:
      errors: by load, of each mixer.
      by_size: by load, of the delta rule by K.
      rewriting: by `TIMES`, of each mixer.
      last: of the pair that the delta rule wrote last, N = K random keys.
      whole: of the delta rule, K orthogonal keys.
    """

    errors: dict[str, list[float]]
    by_size: dict[int, list[float]]
    rewriting: dict[str, list[float]]
    last: float
    whole: float


def find(sizes: Sizes) -> Measured:
    """Errors by load, size and rewriting."""
    channels, rows = sizes.channels, sizes.rows
    errors = {name: curve(name, channels, rows) for name in sizes.names}
    by_size = {k: curve("deltanet", k, 4 * rows) for k in sizes.delta_channels[:-1]}
    by_size[sizes.delta_channels[-1]] = errors["deltanet"]
    key, value = pairs(rows, channels, channels)
    whole = orthogonal(key)
    return Measured(
        errors=errors,
        by_size=by_size,
        rewriting={
            name: [rewritten(name, channels, rows, n) for n in TIMES] for name in sizes.names
        },
        last=last_error(stored("deltanet", key, value), key, value),
        whole=read_error(stored("deltanet", whole, value), whole, value),
    )


def checks_of(found: Measured, theory: np.ndarray) -> tuple[Check, ...]:
    """The claim, part by part; `theory` is linear attention's error by load."""
    linear, delta = (np.array(found.errors[name]) for name in ("linear_attention", "deltanet"))
    once_more = zip(found.rewriting["linear_attention"], TIMES, strict=True)
    return (
        Check("linear attention's error less x / (1 + x), largest",
              float(np.abs(linear - theory).max()), at_most=0.05),
        Check("delta rule, error of the pair written last, N = K random keys", found.last,
              at_most=EXACT),
        Check("delta rule, error of K orthogonal keys", found.whole, at_most=EXACT),
        Check("delta rule, error after orthogonal keys were rewritten",
              max(found.rewriting["deltanet"]), at_most=EXACT),
        Check("linear attention's error less 1 − 1/n after n writes of each key, largest",
              max(abs(e - 1 + 1 / n) for e, n in once_more), at_most=0.05),
        Check(f"spread of the delta rule's error at one N/K over K in {tuple(found.by_size)}",
              float(np.ptp(list(found.by_size.values()), axis=0).max()), at_most=0.05, edge=True),
        Check("delta rule's error over linear attention's, N = K/4 random keys",
              float(delta[0] / linear[0]), at_most=1),
        Check("delta rule's error over linear attention's, largest over all N",
              float((delta / linear).max()), at_most=1, edge=True),
    )  # fmt: skip


def measure(quick: bool) -> Finding:
    """Whether the delta rule holds more pairs than linear attention, and where it does not."""
    sizes = QUICK if quick else FULL
    found = find(sizes)
    errors = found.errors
    theory = linear_theory(np.array([int(x * sizes.channels) for x in LOADS]), sizes.channels)
    both = zip(LOADS, errors["deltanet"], errors["linear_attention"], strict=True)
    behind = [load for load, delta, linear in both if delta > linear]
    at_one = LOADS.index(1.0)
    if behind:
        end = f"; reading all of N ≥ {behind[0]:g} K random keys it errs more than linear attention"
    else:
        end = " and errs less than linear attention at every N"
    return Finding(
        title="The delta rule holds more pairs than linear attention",
        found=f"The delta rule reads orthogonal and rewritten keys without error{end}",
        claim="Error depends on N/K alone. Linear attention errs by x/(1+x), x = (N-1)/K, for "
        "random keys, and by 1 - 1/n once each key is written n times. The delta rule (b = 1) "
        "reads the last pair, K orthogonal keys and rewritten keys exactly, and random keys with "
        "less error than linear attention, few (core) or many (edge).",
        setup=f"K {sizes.channels} (K in {sizes.delta_channels} for the delta rule), V {VALUES}, "
        f"{sizes.rows} rows, N/K in {LOADS}, gates open, decays as each mixer's layer starts; "
        "float32, seed 0",
        checks=checks_of(found, theory),
        numbers=(
            *(Number(f"error at N = K, {name}", e[at_one], "") for name, e in errors.items()),
            *(Number(f"error at N = K/4, {name}", e[0], "") for name, e in errors.items()),
            *(
                Number(f"error after {TIMES[-1]} writes of each key, {name}", e[-1], "")
                for name, e in found.rewriting.items()
            ),
        ),
        curves={
            "errors": errors, "sizes": found.by_size, "theory": theory,
            "rewriting": found.rewriting, "times": TIMES,
        },
    )  # fmt: skip


def draw(figure: Figure, finding: Finding) -> None:
    """Error by load for every mixer, for the delta rule by K, and after rewriting."""
    left, middle, right = panels(figure, 3, lines=4)
    curves = finding.curves
    mixers = curves["errors"]
    for index, (name, errors) in enumerate(mixers.items()):
        look = style(index, of=len(mixers))
        left.plot(LOADS, errors, label=name, **look)
        right.plot(curves["times"], curves["rewriting"][name], label=name, **look)
    left.plot(LOADS, curves["theory"], ":", color=INK, label="x / (1 + x)")
    label(left, "pairs per key channel, N/K", "error of reading all pairs", "Random keys")
    legend(left, columns=3)
    for index, (channels, errors) in enumerate(curves["sizes"].items()):
        middle.plot(LOADS, errors, label=f"K {channels}", **style(index))
    middle.plot(LOADS, curves["theory"], ":", color=INK, label="linear attention")
    legend(middle)
    label(middle, "pairs per key channel, N/K", "error of reading all pairs", "The delta rule by K")
    label(right, "writes of each key", "error of the last values", "Orthogonal keys rewritten")
    right.set_ylim(-0.05, 1.05)
    legend(right, columns=3)


EXPERIMENT = Experiment(measure, draw)
