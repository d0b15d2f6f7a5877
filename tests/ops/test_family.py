"""The family is one op: each member's published recurrence, written out, is the rule with its gates
tied or dropped, on every implementation."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.gated_delta import gated_delta_rule
from tests.ops.test_gated_delta import IMPLEMENTATIONS, relative_error

BATCH, LENGTH, HEADS, K, V = 2, 37, 2, 16, 8
SHAPES = {"q": K, "k": K, "v": V, "g": K, "b": K, "w": V, "beta": 1, "a": 1, "step": 1, "share": 1}


class Gates(NamedTuple):
    """What a member takes for the rule's three gates, as functions of the arrays drawn."""

    log_decay: object
    erase: object
    write: object


@functools.cache
def draw() -> dict[str, np.ndarray]:
    """Arrays of one sequence: unit keys, gates in their ranges; a: one log-decay per head."""
    rng = np.random.default_rng(3)
    x = {n: rng.standard_normal((BATCH, LENGTH, HEADS, size)) for n, size in SHAPES.items()}
    for name in ("q", "k"):
        x[name] /= np.linalg.norm(x[name], axis=-1, keepdims=True)
    for name in ("g", "a"):
        x[name] = -np.exp(x[name] - 2)
    for name in ("b", "w", "beta", "share"):
        x[name] = 1 / (1 + np.exp(-x[name]))
    x["step"] = np.log1p(np.exp(x["step"]))
    x["gamma"] = np.broadcast_to(1 - 2.0 ** (-5 - np.arange(HEADS))[:, None], x["a"].shape)
    x["zero"], x["one"] = np.zeros_like(x["a"]), np.ones_like(x["a"])
    return x


# Of each member: its gates in the rule, and its transition of the state S [K, V] as published.
MEMBERS = {
    "linear_attention": (
        Gates(lambda x: x["zero"], lambda x: x["zero"], lambda x: x["one"]),
        lambda s, t: s + np.outer(t["k"], t["v"]),
    ),
    "retnet": (
        Gates(lambda x: np.log(x["gamma"]), lambda x: x["zero"], lambda x: x["one"]),
        lambda s, t: t["gamma"] * s + np.outer(t["k"], t["v"]),
    ),
    "gla": (
        Gates(lambda x: x["g"], lambda x: x["zero"], lambda x: x["one"]),
        lambda s, t: np.diag(np.exp(t["g"])) @ s + np.outer(t["k"], t["v"]),
    ),
    "mamba2": (
        Gates(lambda x: x["step"] * x["a"], lambda x: x["zero"], lambda x: x["step"]),
        lambda h, t: np.exp(t["step"] * t["a"]) * h + t["step"] * np.outer(t["k"], t["v"]),
    ),
    "deltanet": (
        Gates(lambda x: x["zero"], lambda x: x["beta"], lambda x: x["beta"]),
        lambda s, t: s - t["beta"] * np.outer(t["k"], t["k"] @ s - t["v"]),
    ),
    "gdn": (
        Gates(lambda x: x["a"], lambda x: x["beta"], lambda x: x["beta"]),
        lambda s, t: (
            np.exp(t["a"]) * (np.eye(len(s)) - t["beta"] * np.outer(t["k"], t["k"])) @ s
            + t["beta"] * np.outer(t["k"], t["v"])
        ),
    ),
    "comba": (
        Gates(
            lambda x: x["a"],
            lambda x: x["share"] * x["beta"] * np.exp(-x["a"]),
            lambda x: x["beta"],
        ),
        lambda s, t: (
            np.exp(t["a"]) * s
            - t["share"] * t["beta"] * np.outer(t["k"], t["k"] @ s)
            + t["beta"] * np.outer(t["k"], t["v"])
        ),
    ),
    "kda": (
        Gates(lambda x: x["g"], lambda x: x["beta"], lambda x: x["beta"]),
        lambda s, t: (
            (np.eye(len(s)) - t["beta"] * np.outer(t["k"], t["k"])) @ np.diag(np.exp(t["g"])) @ s
            + t["beta"] * np.outer(t["k"], t["v"])
        ),
    ),
    "gdn2": (
        Gates(lambda x: x["g"], lambda x: x["b"], lambda x: x["w"]),
        lambda s, t: (
            (np.eye(len(s)) - np.outer(t["k"], t["b"] * t["k"])) @ np.diag(np.exp(t["g"])) @ s
            + np.outer(t["k"], t["w"] * t["v"])
        ),
    ),
}


@functools.cache
def published(member: str) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and last states of the member's own recurrence in float64."""
    x, transition = draw(), MEMBERS[member][1]
    output, last = np.zeros((BATCH, LENGTH, HEADS, V)), np.zeros((BATCH, HEADS, K, V))
    for i, h in np.ndindex(BATCH, HEADS):
        for t in range(LENGTH):
            token = {name: array[i, t, h] for name, array in x.items()}
            last[i, h] = transition(last[i, h], token)
            output[i, t, h] = last[i, h].T @ token["q"] / np.sqrt(K)
    return output, last


def rule_inputs(member: str, channels: bool) -> list[jax.Array]:
    """The rule's arrays in float32; `channels` spreads every gate over its channels, as GDN-2's."""
    x, gates = draw(), MEMBERS[member][0]
    arrays = [x["q"], x["k"], x["v"], *(gate(x) for gate in gates)]
    if channels:
        for index, size in ((3, K), (4, K), (5, V)):
            arrays[index] = np.broadcast_to(arrays[index], (BATCH, LENGTH, HEADS, size))
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@functools.partial(jax.jit, static_argnums=0)
def run(implementation: str, *arrays):
    def functional(arrays):
        output, state = gated_delta_rule(*arrays, implementation=implementation)
        return jnp.sum(jnp.sin(3 * output)) + jnp.sum(jnp.cos(state)), (output, state)

    gradients, outputs = jax.grad(functional, has_aux=True)(list(arrays))
    return outputs, gradients


# Members whose gates have the same shapes share a program. The kernels', the dearest, are compiled
# by day for gates that are all per head and all per channel, and not for decay alone per channel.
SLOW = {("gla", "pallas"), ("kda", "pallas")}


@pytest.mark.parametrize(
    ("member", "implementation"),
    [
        pytest.param(*each, marks=pytest.mark.slow if each in SLOW else ())
        for each in itertools.product(MEMBERS, IMPLEMENTATIONS)
    ],
)
def test_the_rule_with_gates_tied_is_the_published_recurrence(member, implementation):
    (output, state), own = run(implementation, *rule_inputs(member, channels=False))
    expected_output, expected_state = published(member)
    assert relative_error(output, expected_output) < 2e-6
    assert relative_error(state, expected_state) < 2e-6

    # GDN-2 given the member's gates, one value repeated over the channels, is that member too, and
    # the gradient of the one value is the sum of theirs.
    (output, state), spread = run(implementation, *rule_inputs(member, channels=True))
    assert relative_error(output, expected_output) < 2e-6
    assert relative_error(state, expected_state) < 2e-6
    for got, full in zip(own, spread, strict=True):
        summed = full if got.shape == full.shape else full.sum(-1, keepdims=True)
        assert relative_error(got, summed) < 5e-6
