"""Can a state grow that nothing is written to? Unit keys, erase gates in [0, 1], decay off.

One transition has spectral radius 1 at most: it is the identity plus a rank-one edit whose
eigenvalue is 1 − Σ b k² ∈ [0, 1]. But it is not normal, and its norm reaches 2/√3. If b is one
number for all channels it is normal and a contraction. If b differs by channel but not by token,
all transitions are contractions in the norm |√b ⊙ s|. If it changes with the token, no norm serves
all, and products may grow. The search looks for those that do.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from carve_jax.mixers.gates import init_a_log, init_dt_bias
from carve_jax.ops.gated_delta import CarveState, carve_rule, gated_delta_rule
from experiments.theory import transitions
from experiments.theory.figures import COLOURS, INK, label, legend, panels, style
from experiments.theory.finding import Check, Experiment, Finding, Number

BOUND = 2 / np.sqrt(3)  # of the norm, for b ∈ [0, 1]; reached at |k on the erased channels|² = 1/3
BOUND_NEGATIVE = np.sqrt(2)  # for b ∈ [0, 2]
ROUNDING = 1e-9
GATE_CHUNK = 64


def pair() -> tuple[np.ndarray, np.ndarray]:
    """Two tokens of two channels whose product has spectral radius 5/4: K = 2, [2, 2] twice."""
    keys = np.sqrt(np.array([[1.0, 5.0], [5.0, 1.0]]) / 6)
    return keys, np.array([[1.0, 0.0], [0.0, 1.0]])


def unforced(keys: np.ndarray, erase: np.ndarray, tokens: int) -> np.ndarray:
    """Norms of the rule's states, nothing written, these tokens repeated: [tokens]."""
    count, channels = keys.shape
    index = np.arange(tokens) % count
    row = [jnp.asarray(x[index], jnp.float32)[None, :, None] for x in (keys, erase)]
    zeros = jnp.zeros((1, tokens, 1, 1))
    start = jnp.eye(channels)[None, None]
    # Row i of the batch reads channel i of the state at every token.
    queries = jnp.broadcast_to(jnp.eye(channels)[:, None, None], (channels, tokens, 1, channels))
    batch = [jnp.broadcast_to(x, (channels, *x.shape[1:])) for x in (*row, zeros)]
    read, _ = gated_delta_rule(
        queries, batch[0], jnp.zeros((channels, tokens, 1, channels)), batch[2], batch[1], batch[2],
        scale=1.0, initial_state=jnp.broadcast_to(start, (channels, *start.shape[1:])),
        implementation="recurrent",
    )  # fmt: skip
    return np.sqrt(np.square(np.asarray(read, np.float64)).sum((0, 2, 3)))


def random_products(rng: np.random.Generator, rows: int, channels: int, tokens: int) -> np.ndarray:
    """Norms of products of random transitions, half with b uniform, half at its ends."""
    state = np.broadcast_to(np.eye(channels), (rows, channels, channels))
    found = []
    for _ in range(tokens):
        halves = [
            transitions.random_tokens(rng, (rows // 2, channels), corners=corners)
            for corners in (False, True)
        ]
        keys, erase = (np.concatenate(parts) for parts in zip(*halves, strict=True))
        state = transitions.transitions(keys, erase) @ state
        found.append(np.linalg.norm(state, ord=2, axis=(-2, -1)))
    return np.stack(found, axis=1)


def constant_gate_excess(rng: np.random.Generator, channels: int, tokens: int) -> float:
    """Largest norm of products under one b for all tokens, over its bound √(max b / min b)."""
    keys, _ = transitions.random_tokens(rng, (tokens, channels))
    erase = 0.01 + 0.99 * rng.random(channels)
    state, largest = np.eye(channels), 0.0
    for each in transitions.transitions(keys, np.broadcast_to(erase, keys.shape)):
        state = each @ state
        largest = max(largest, float(np.linalg.norm(state, ord=2)))
    return largest / np.sqrt(erase.max() / erase.min())


@jax.jit
def _gate_chunk(
    state: CarveState, query: jax.Array, key: jax.Array, strength: jax.Array
) -> CarveState:
    nothing = jnp.zeros((*key.shape[:3], 1))
    down, up = jnp.ones((1, 1, 1)), strength * jnp.asarray([[[-1.0, 1.0]]])
    logits = jnp.zeros_like(key)
    return carve_rule(
        query, key, nothing, nothing, logits, nothing, down, up, scale=1.0, initial_state=state,
        gate_chunk=key.shape[1], implementation="recurrent",
    )[1]  # fmt: skip


def closed_loop(chunks: int, strength: float, size: float = 1.0) -> np.ndarray:
    """Norms of the state at the end of each gate chunk, the erase logits of all tokens being 0.

    Keys and queries take turns by gate chunk. Where content is heard (`strength` of P_up) its sign
    opens the erase gate of one channel and shuts the other's; where it is not, b = 1/2 throughout
    and every transition is a contraction. `size` is the norm of the state at the start.
    """
    small = 1.256 / GATE_CHUNK  # what drains most from one channel to the other in a chunk
    keys = np.sqrt(np.array([[small, 1 - small], [1 - small, small]]))
    memory, nothing = jnp.asarray([[[[size], [0.0]]]]), jnp.zeros((1, 1, 1))
    state = CarveState(memory, nothing, nothing, jnp.zeros((1,), jnp.int32))
    found = []
    for turn in range(chunks):
        query, key = (
            jnp.broadcast_to(jnp.asarray(x[turn % 2], jnp.float32), (1, GATE_CHUNK, 1, 2))
            for x in (np.eye(2), keys)
        )
        state = _gate_chunk(state, query, key, jnp.asarray(strength))
        found.append(float(jnp.linalg.norm(state.memory)))
    return np.array(found)


def share_of_slow_decays(limit: float) -> float:
    """Share of channels whose decay is slower than `limit` at GDN-2's initialisation."""
    heads, channels = 512, 64
    rates = jnp.exp(init_a_log(jax.random.key(0), (heads,)))[:, None]
    steps = jax.nn.softplus(init_dt_bias(jax.random.key(1), (heads * channels,)))
    return float((rates * steps.reshape(heads, channels) < limit).mean())


class Sizes(NamedTuple):
    """What is measured.

    Attributes:
      single: random transitions of K 8.
      searched: (K, period) of each search.
      steps: of gradient ascent.
      rows, tokens: of the random products.
      chunks: gate chunks of the closed loop.
    """

    single: int
    searched: tuple[tuple[int, int], ...]
    steps: int
    rows: int
    tokens: int
    chunks: int


FULL = Sizes(20000, ((2, 2), (3, 3), (4, 4), (8, 8)), 400, 64, 512, 16)
QUICK = Sizes(2000, ((2, 2), (4, 4)), 100, 8, 64, 8)


class Measured(NamedTuple):
    """What was found.

    Attributes:
      radius, norm, scalar_norm: the largest of one transition, the last under one b for all
        channels up to 2.
      excess: norm of products under one b for all tokens, over its bound.
      searched: growth per token that each search found, by the largest b.
      products: norms of the random products, [rows, tokens].
      pair, pair_rate: norms of two tokens in turn, and their growth per token.
      loop, silent, faint: norms through the content gate at the end of each gate chunk: from 1,
        without content, and from 0.001.
      loop_rate: growth per token of the first.
    """

    radius: float
    norm: float
    scalar_norm: float
    excess: float
    searched: dict[float, list[float]]
    products: np.ndarray
    pair: np.ndarray
    pair_rate: float
    loop: np.ndarray
    silent: np.ndarray
    faint: np.ndarray
    loop_rate: float

    @property
    def best(self) -> float:
        """The fastest growth per token that was found with b up to 1."""
        return max(max(self.searched[1.0]), self.pair_rate)


def find(sizes: Sizes) -> Measured:
    """Radii, norms, searches, random products and the closed loop; seed 0."""
    rng = np.random.default_rng(0)
    single = transitions.random_tokens(rng, (sizes.single, 8))
    scalar = [np.asarray(single[0]), 2 * np.broadcast_to(single[1][..., :1], single[1].shape)]
    products = random_products(rng, sizes.rows, 16, sizes.tokens)
    pair_norms = unforced(*pair(), sizes.tokens)
    loop = closed_loop(sizes.chunks, 50.0)
    return Measured(
        radius=transitions.spectral_radii(*single).max(),
        norm=transitions.norms(*single).max(),
        scalar_norm=transitions.norms(*scalar).max(),
        excess=max(constant_gate_excess(rng, 8, 4 * sizes.tokens) for _ in range(4)),
        searched={
            scale: [
                transitions.fastest(k, n, scale=scale, steps=sizes.steps)[0]
                for k, n in sizes.searched
            ]
            for scale in (1.0, 2.0)
        },
        products=products,
        pair=pair_norms,
        pair_rate=(pair_norms[-1] / pair_norms[-33]) ** (1 / 32),
        loop=loop,
        silent=closed_loop(sizes.chunks, 0.0),
        faint=closed_loop(sizes.chunks, 50.0, size=1e-3),
        loop_rate=(loop[-1] / loop[1]) ** (1 / (GATE_CHUNK * (sizes.chunks - 2))),
    )


def checks_of(found: Measured) -> tuple[Check, ...]:
    """The claim, part by part."""
    tokens = found.products.shape[1]
    return (
        Check("spectral radius of one transition less 1", found.radius - 1, at_most=ROUNDING),
        Check("norm of one transition", found.norm, at_most=BOUND + ROUNDING),
        Check("norm of one transition, b one number for all channels up to 2, less 1",
              found.scalar_norm - 1, at_most=ROUNDING),
        Check("norm of products under one b for all tokens, over √(max b / min b)",
              found.excess, at_most=1 + ROUNDING),
        Check("growth per token of random products, slowest decline of all rows",
              (found.products[:, -1] ** (1 / tokens)).max(), at_most=1.0),
        Check("growth per token that the search finds, b by channel and token", found.best,
              at_most=1 + 1e-6),
        Check("growth per token with the content gate closing the loop, all logits 0, L 64, "
              "from a state of norm 1",
              found.loop_rate, at_most=1 + 1e-6),
    )  # fmt: skip


def numbers_of(sizes: Sizes, found: Measured) -> tuple[Number, ...]:
    """What was measured besides."""
    return (
        *(
            Number(f"growth per token found, K {k}, period {n}, b ≤ {scale:g}", rate, "times")
            for scale, rates in found.searched.items()
            for (k, n), rate in zip(sizes.searched, rates, strict=True)
        ),
        Number("bound of growth per token, b ≤ 1", float(BOUND), "times"),
        Number("bound of growth per token, b ≤ 2", float(BOUND_NEGATIVE), "times"),
        Number("growth per token of the pair √(1/6), √(5/6) in the rule", found.pair_rate, "times"),
        Number("largest norm on the way of random products", float(found.products.max())),
        Number("log-decay that rules growth out", -float(np.log(BOUND)), "nats per token"),
        Number(
            "channels with a slower decay at initialisation",
            share_of_slow_decays(float(np.log(BOUND))),
            "share",
        ),
        Number("growth a gate chunk through the content", found.loop_rate**GATE_CHUNK, "times"),
        Number("largest state of the same inputs without content", float(found.silent.max())),
        Number("last state through the content, from a start of 0.001", float(found.faint[-1])),
    )


def measure(quick: bool) -> Finding:
    """Whether a state can grow that nothing is written to."""
    sizes = QUICK if quick else FULL
    found = find(sizes)
    return Finding(
        title="A state that nothing is written to does not grow",
        found=f"A state that nothing is written to can grow {found.best:.3f} times per token "
        f"(norm's bound {BOUND:.3f}), {found.loop_rate:.3f} through the content gate alone",
        claim="With unit keys, b in [0, 1] and no decay the state is stable: every transition has "
        "spectral radius 1 at most, and no sequence of them, chosen freely or by the content gate, "
        "makes a state grow that nothing is written to.",
        setup=f"{sizes.single} random transitions of K 8; {sizes.rows} random products of "
        f"{sizes.tokens}, K 16; gradient ascent from {transitions.RESTARTS} starts, {sizes.steps} "
        f"steps, (K, period) {list(sizes.searched)}; content loop of {sizes.chunks} gate chunks of "
        f"{GATE_CHUNK}, K 2; seed 0",
        checks=checks_of(found),
        numbers=numbers_of(sizes, found),
        curves={
            "sizes": sizes.searched, "searched": found.searched, "pair": found.pair,
            "random": found.products, "loop": found.loop, "silent": found.silent,
        },
    )  # fmt: skip


def draw(figure: Figure, finding: Finding) -> None:
    """Norms over time, and growth found against its bounds."""
    left, right = panels(figure, 2, lines=4)
    curves = finding.curves
    tokens = np.arange(1, curves["random"].shape[1] + 1)
    ends = GATE_CHUNK * np.arange(1, len(curves["loop"]) + 1)
    left.plot(tokens, curves["pair"], color=COLOURS[1], label="two tokens in turn, b of 0 and 1")
    left.plot(tokens, curves["random"].max(0), color=COLOURS[0], label="random, the largest")
    left.plot(ends, curves["loop"], label="b from content, logits 0", **style(2))
    left.plot(ends, curves["silent"], label="the same, P_up = 0", **style(3))
    left.set_yscale("log")
    legend(left, columns=1)
    label(left, "tokens", "norm of the state", "Nothing is written, nothing decays")
    names = [f"K {k}\nperiod {n}" for k, n in curves["sizes"]]
    for index, (scale, rates) in enumerate(curves["searched"].items()):
        bound = BOUND if scale == 1 else BOUND_NEGATIVE
        right.plot(names, rates, label=f"found, b ≤ {scale:g}", **style(index))
        right.axhline(bound, color=COLOURS[index], linestyle=":", label=f"bound, b ≤ {scale:g}")
    right.axhline(1, color=INK, linewidth=1)
    legend(right)
    label(right, "", "growth per token", "Fastest growth found")


EXPERIMENT = Experiment(measure, draw)
