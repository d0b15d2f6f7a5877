"""The implementations of the rules by name, and which of them runs.

One more is a room of its own and one entry: in `pallas_kernels.backends.BACKENDS` for kernels, in
`REGISTRY` for anything else.
"""

import functools
import warnings

import jax.numpy as jnp

from carve_jax.ops.content_gate import CarveState
from carve_jax.ops.gated_delta.chunked import chunked_carve, chunked_rule
from carve_jax.ops.gated_delta.implementation import Call, Implementation
from carve_jax.ops.gated_delta.kernels import Kernels
from carve_jax.ops.gated_delta.reference import recurrent
from carve_jax.shapes import Array, Float
from pallas_kernels.backends import BACKENDS, CHOSEN
from pallas_kernels.call import Request


class Recurrent(Implementation):
    """Token by token: takes everything, float64 too."""

    def run(self, call: Call) -> tuple[Float[Array, "B T N V"], CarveState]:
        """See `recurrent`."""
        return recurrent(call.inputs, call.state, call.segment_ids, call.scale, call.gate)


class Chunked(Implementation):
    """The WY form over tiles, in XLA."""

    def unsupported_reason(self, request: Request) -> str | None:
        """Float64."""
        if jnp.dtype(request.dtype) != jnp.float64:
            return None
        return "it computes in float32 and was given float64 inputs"

    def unchosen_reason(self, request: Request) -> str | None:
        """A single token has no tile to parallelise."""
        one_token = request.sizes is not None and request.sizes["T"] == 1
        return "one token is no tile" if one_token else None

    def run(self, call: Call) -> tuple[Float[Array, "B T N V"], CarveState]:
        """See `chunked_rule` and `chunked_carve`."""
        inputs, state, segments, scale = call.inputs, call.state, call.segment_ids, call.scale
        if call.gate is not None:
            return chunked_carve(inputs, state, segments, scale, call.gate, call.aligned)
        output, memory = chunked_rule(inputs, state.memory, segments, scale, call.chunk_size)
        return output, state._replace(memory=memory)


KERNELS = "pallas"  # the best kernels that take a call, of those that are chosen
REGISTRY: dict[str, Implementation] = {
    "recurrent": Recurrent(),
    "chunked": Chunked(),
    **{name: Kernels(name) for name in BACKENDS},
}
# What `implementation=None` tries in turn; the last takes everything.
BEST_FIRST = (*CHOSEN, "chunked", "recurrent")
IMPLEMENTATIONS = ("recurrent", "chunked", KERNELS, *BACKENDS)


def choose(implementation: str | None, request: Request) -> str:
    """Name in `REGISTRY` of what runs such calls.

    Args:
      implementation: a name, "pallas" for the best of the kernels, or None for the best of all.
      request: the calls.

    Raises:
      ValueError: when the name is unknown.
      NotImplementedError: when nothing of that name runs here, or can be trusted: every reason.
    """
    check_implementation_name(implementation)
    if implementation is None:
        return _best(request)
    names = CHOSEN if implementation == KERNELS else (implementation,)
    reasons = {}
    for name in names:
        reason = _refusal(REGISTRY[name], request)
        if reason is None:
            return name
        reasons[name] = reason
    other = next(n for n in BEST_FIRST if n not in names and not _refusal(REGISTRY[n], request))
    raise NotImplementedError(
        f"implementation {implementation!r}: {_join(reasons)}; use {other!r} or None"
    )


def _refusal(candidate: Implementation, request: Request) -> str | None:
    return candidate.unsupported_reason(request) or candidate.distrusted_reason(request)


def _best(request: Request) -> str:
    for name in BEST_FIRST:
        candidate = REGISTRY[name]
        if candidate.unsupported_reason(request) or candidate.unchosen_reason(request):
            continue
        reason = candidate.distrusted_reason(request)
        if reason is None:
            return name
        _warn_once(f"implementation {name!r} is passed over: {reason}")
    raise AssertionError("'recurrent' takes everything")


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _join(reasons: dict[str, str]) -> str:
    """All reasons, each with its name where they are several."""
    if len(set(reasons.values())) == 1:
        return next(iter(reasons.values()))
    return "; ".join(f"{name!r}: {reason}" for name, reason in reasons.items())


def check_implementation_name(implementation: str | None) -> None:
    """Refuse a name that no implementation has, whatever this device can run.

    Raises:
      ValueError: when no implementation has that name.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown implementation {implementation!r}; allowed are "
            f"{', '.join(map(repr, IMPLEMENTATIONS))} and None (the best supported)"
        )
