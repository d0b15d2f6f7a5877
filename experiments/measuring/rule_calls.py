"""Calls of the rule that are timed: shapes, inputs, and our own contenders."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.ops.gated_delta import carve_rule, gated_delta_rule
from experiments.measuring.timing import Contender, contender, with_gradients, with_pullback

TILE = 64  # tokens of a tile of `chunked`, and of a gate chunk
RULES = ("gdn2", "carve")
DIRECTIONS = ("forward", "forward and backward")


class Shape(NamedTuple):
    """Sizes of one call of the rule; K = V = channels."""

    batch: int
    length: int
    heads: int
    channels: int

    @property
    def label(self) -> str:
        """As in 8x4096x16x128: B, T, H, D."""
        return "x".join(map(str, self))

    @property
    def elements(self) -> int:
        """Numbers in a query."""
        return self.batch * self.length * self.heads * self.channels


LAYER = Shape(8, 4096, 16, 128)  # the official layer


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "seed"))
def rule_inputs(shape: Shape, dtype: str = "float32", seed: int = 0) -> dict[str, jax.Array]:
    """Inputs of every contender: unit keys, gates from sigmoids, decays from softplus.

    All are of `dtype`, the log-decay float32. As a normal number drawn in float32 stays within ±6,
    no log-decay is below −10, the lowest for which the kernels have a cheaper path.
    """
    batch, length, heads, channels = shape
    keys = iter(jax.random.split(jax.random.key(seed), 9))

    def draw(*sizes: int) -> jax.Array:
        return jax.random.normal(next(keys), sizes, jnp.float32)

    full, rank = (batch, length, heads, channels), 16
    key, logits, write = draw(*full), draw(*full), jax.nn.sigmoid(draw(*full))
    inputs = {
        "query": draw(*full),
        "key": key / jnp.linalg.norm(key, axis=-1, keepdims=True),
        "value": draw(*full),
        "logits": logits,
        "erase": jax.nn.sigmoid(logits),
        "write": write,
        "head_write": write[..., :1],
        "down": 0.3 * draw(heads, channels, rank),
        "up": 0.3 * draw(heads, rank, channels),
        "cotangent": draw(*full),
    }
    inputs = {name: x.astype(dtype) for name, x in inputs.items()}
    return {**inputs, "log_decay": -jax.nn.softplus(draw(*full))}


def input_shapes(shape: Shape, dtype: str) -> dict[str, Any]:
    """Shapes and dtypes (`jax.ShapeDtypeStruct`) of `rule_inputs`, without the numbers."""
    return jax.eval_shape(functools.partial(rule_inputs, shape=shape, dtype=dtype))


def rule_arguments(x: Mapping[str, jax.Array], rule: str) -> tuple[jax.Array, ...]:
    """The arguments of "gdn2" or "carve" among `rule_inputs`."""
    own = ("erase", "write") if rule == "gdn2" else ("logits", "head_write", "down", "up")
    return tuple(x[name] for name in ("query", "key", "value", "log_decay", *own))


def rule_function(rule: str, implementation: str, **options: Any) -> Callable[..., jax.Array]:
    """A function of `rule_arguments` that gives the rule's output."""
    if rule == "gdn2":
        return lambda *a: gated_delta_rule(
            *a, chunk_size=TILE, implementation=implementation, **options
        )[0]
    return lambda *a: carve_rule(*a, gate_chunk=TILE, implementation=implementation, **options)[0]


def rule_contender(
    x: Mapping[str, jax.Array], rule: str, implementation: str, backward: bool, **options: Any
) -> Contender:
    """A rule on these inputs, forward or forward and backward with every gradient.

    The cotangent is an argument: as a constant of the program, a large one compiles for minutes.
    Shapes in place of the inputs give a contender that is compiled and cannot be called.
    """
    function, arguments = rule_function(rule, implementation, **options), rule_arguments(x, rule)
    if backward:
        return contender(with_pullback(function), x["cotangent"], *arguments)
    return contender(function, *arguments)


def ours(shape: Shape, rule: str, implementation: str, backward: bool = True) -> Contender:
    """GDN-2 or CARVE in float32, forward or forward and backward with every gradient."""
    x = rule_inputs(shape)
    function = rule_function(rule, implementation)
    run = with_gradients(function, x["cotangent"]) if backward else function
    return contender(run, *rule_arguments(x, rule))
