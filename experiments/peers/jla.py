"""jax-linear-attention (JAX; Pallas Mosaic GPU kernels for Hopper)."""

import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax

from experiments.measuring.timing import Contender, contender, with_pullback

VERSION = "0.1.0"
PACKAGE = "jax-linear-attention"
# Its name of each rule, its names of the gates, and which of `jla_inputs` they are.
RULES: dict[str, tuple[str, dict[str, str]]] = {
    "gdn2": ("gdn2", {"g": "log_decay", "b": "erase", "w": "write"}),
    "kda": ("kda", {"g": "log_decay", "beta": "beta"}),
    "gdn": ("gated_deltanet", {"g": "head_decay", "beta": "beta"}),
}


class Jla(NamedTuple):
    """What is used of the package.

    Attributes:
      linear_attention: its public function: (kind, q, k [B,T,H,K], v [B,T,H,V], impl=…, gates by
        name) -> (output, state).
      implementation: its `impl`; "mosaic_gpu" are its kernels.
      versions: of the packages.
    """

    linear_attention: Callable[..., Any]
    implementation: str
    versions: dict[str, str]


def load_jla(implementation: str = "mosaic_gpu") -> Jla | str:
    """jax-linear-attention, or why it is not here."""
    install = f"pip install '{PACKAGE}=={VERSION}' (Python 3.12, JAX 0.11.2)"
    try:
        from jla.ops import linear_attention

        found = metadata.version(PACKAGE)
    except ImportError as error:  # so is the version's, where there is none
        python = ".".join(map(str, sys.version_info[:2]))
        have = f"this is Python {python} with JAX {jax.__version__}"
        return f"{PACKAGE} cannot be imported ({error}): {install}; {have}"
    if found != VERSION:
        return f"{found} is installed, the comparison is with {VERSION}: {install}"
    versions = {PACKAGE: found, "jax": jax.__version__}
    return Jla(linear_attention, implementation, versions)


def jla_inputs(x: Mapping[str, jax.Array], rule: str) -> tuple[jax.Array, ...]:
    """q, k, v and the gates of a rule, out of `rule_inputs` or shapes of them.

    KDA's and GDN's β is the first channel of the write gate, GDN's decay that of the decay.
    """

    def made(x: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        own = {"beta": x["head_write"][..., 0], "head_decay": x["log_decay"][..., 0]}
        given = {**x, **own}
        return tuple(given[name] for name in ("query", "key", "value", *RULES[rule][1].values()))

    shapes = any(isinstance(a, jax.ShapeDtypeStruct) for a in x.values())
    return jax.eval_shape(made, x) if shapes else made(x)


def jla_contender(jla: Jla, x: Mapping[str, jax.Array], rule: str, backward: bool) -> Contender:
    """One of its kernels, forward, or forward and backward with every gradient.

    Args:
      jla: the package.
      x: `rule_inputs`, or shapes of them: then the contender is compiled and cannot be called.
      rule: "gdn2", "kda" or "gdn".
      backward: with the gradients.

    Raises:
      ValueError: the package has no kernel for these inputs; it says why.
    """
    kind, gates = RULES[rule]

    def function(q: jax.Array, k: jax.Array, v: jax.Array, *given: jax.Array) -> jax.Array:
        named = dict(zip(gates, given, strict=True))
        return jla.linear_attention(kind, q, k, v, impl=jla.implementation, **named)[0]

    arguments = jla_inputs(x, rule)
    if backward:
        return contender(with_pullback(function), x["cotangent"], *arguments)
    return contender(function, *arguments)
