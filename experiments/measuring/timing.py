"""Fair timing: contenders take turns within one run, and medians are compared."""

import functools
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.errors import UserError
from pallas_kernels import device

MOST_CALLS = 1000


class Contender(NamedTuple):
    """A compiled computation and the arrays it is called with.

    Attributes:
      compiled: what to time; what it returns can be waited for by `jax.block_until_ready`.
      arguments: its inputs.
      peak_bytes: arguments, outputs and temporaries of the compiled program.
    """

    compiled: Callable[..., Any]
    arguments: tuple
    peak_bytes: int


def contender(function: Callable[..., Any], *arguments: Any) -> Contender:
    """Compile a function for these arguments."""
    compiled = jax.jit(function).lower(*arguments).compile()
    return Contender(compiled, arguments, peak_bytes(compiled))


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Arguments, outputs and temporaries of a compiled program; what is donated counts once."""
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend reports no memory"
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return held - memory.alias_size_in_bytes


def with_pullback(function: Callable[..., Any]) -> Callable[..., Any]:
    """(cotangent, *arguments) -> the output and the gradients of ⟨output, cotangent⟩ in each."""

    def run(cotangent: jax.Array, *arguments: Any) -> Any:
        output, pull = jax.vjp(function, *arguments)
        return output, pull(cotangent.astype(output.dtype))

    return run


def with_gradients(function: Callable[..., Any], cotangent: jax.Array) -> Callable[..., Any]:
    """The function's output and the gradients of ⟨output, cotangent⟩ in every argument."""
    return functools.partial(with_pullback(function), cotangent)


class Carried:
    """A compiled (state, *arguments) -> (state, rest) that donates its state, as one call.

    The state that a call returns is the next call's.
    """

    def __init__(self, compiled: Callable[..., Any], state: Any, *arguments: Any) -> None:
        self.compiled, self.state, self.arguments = compiled, state, arguments

    def __call__(self) -> Any:
        """The next state and what else the call returns."""
        self.state, rest = self.compiled(self.state, *self.arguments)
        return self.state, rest


def median_seconds(
    contenders: Mapping[str, Contender],
    repeats: int,
    seconds: float = 60.0,
    turn_seconds: float = 0.0,
) -> dict[str, float]:
    """Median time of a call of each contender over `repeats` rounds.

    Contenders take turns, so that whatever else the machine does falls on all alike. A turn is one
    call to settle caches and the allocator after the contender before, and then the timed ones: as
    many, without waiting between them, as take `turn_seconds`, one at least. On a device that
    works behind the host's back, a turn of many calls shows its own time, not that of launching.
    A contender whose timed calls took more than `seconds`, three turns at least, sits the rest out.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    calls: dict[str, int] = {}
    for _ in range(repeats):
        for name, entry in contenders.items():
            if len(times[name]) >= 3 and sum(times[name]) * calls[name] > seconds:
                continue
            if name not in calls:
                calls[name] = _calls(entry, turn_seconds)
            _seconds(entry, 1)
            times[name].append(_seconds(entry, calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(entry: Contender, calls: int) -> float:
    """Time a call of so many calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        result = entry.compiled(*entry.arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def _calls(entry: Contender, turn_seconds: float) -> int:
    """Calls that take about `turn_seconds`."""
    if not turn_seconds:
        return 1
    _seconds(entry, 1)  # whatever a first call does once
    return min(MOST_CALLS, max(1, math.ceil(turn_seconds / _seconds(entry, 1))))


def ratio(seconds: Mapping[str, float], name: str, baseline: str) -> float | None:
    """Time of one contender over another's, None where one is missing."""
    if name not in seconds or baseline not in seconds:
        return None
    return round(seconds[name] / seconds[baseline], 3)


class LeftOut(Exception):
    """A contender that is not measured; the message says why."""


def attempt(make: Callable[[], Any]) -> Any:
    """What `make` gives; if it fails, the reason in a line.

    A run on a GPU should not end with one contender that needs too much memory, or a peer that does
    not compile here: the figures say what is missing and why.
    """
    try:
        return make()
    except LeftOut as reason:
        return str(reason)
    except Exception as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def in_fresh_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """What `measure` gives in an interpreter of its own, whose memory is its own.

    A fork would share this one's memory, and hang in XLA's threads.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def require_gpu(what: str) -> None:
    """Raises UserError, which begins with `what`, unless JAX computes, and the kernels run, on an
    NVIDIA GPU."""
    if device.mode() != "gpu":
        raise UserError(
            f"{what} times kernels on a GPU, and {device.SWITCH}={device.mode()} keeps them off "
            "it: unset it"
        )
    first = jax.devices()[0]
    if first.platform != "gpu" or "cuda" not in first.client.platform_version.lower():
        raise UserError(
            f"{what} needs an NVIDIA GPU, and JAX computes on {first.device_kind!r}: run it on a "
            "machine that has one, after pip install -e '.[gpu]'"
        )


def device_bytes() -> float:
    """Bytes that JAX may take of the device's memory; infinite where it does not say."""
    figures = jax.devices()[0].memory_stats() or {}
    return figures.get("bytes_limit", math.inf)


def machine_ceilings(repeats: int) -> dict[str, float]:
    """Measured rates of this device: FLOP/s of a large float32 product, bytes/s of a copy."""
    size, length = 1536, 1 << 25
    square = jnp.ones((size, size), jnp.float32)
    vector = jnp.zeros((length,), jnp.float32)
    highest = jax.lax.Precision.HIGHEST
    seconds = median_seconds(
        {
            "product": contender(lambda a: jnp.matmul(a, a, precision=highest), square),
            "copy": contender(lambda x: x + 1.0, vector),
        },
        repeats,
    )
    return {
        "flop_per_second": 2 * size**3 / seconds["product"],
        "bytes_per_second": 8 * length / seconds["copy"],
    }


def device_ceilings(
    repeats: int, turn_seconds: float, *, side: int = 8192, length: int = 1 << 28
) -> dict[str, float]:
    """Measured rates of an accelerator: FLOP/s of a large bfloat16 product, bytes/s of a copy.

    Bytes count twice, read and written; the rate is the better of a copy and of x + 1. The numbers
    are random: a product of zeros takes less power and runs faster than real ones.

    Args:
      repeats, turn_seconds: as `median_seconds` takes them.
      side: of the square factors.
      length: float32 numbers of the copy (1 GiB by default, far more than a cache holds).
    """
    key = jax.random.key(0)
    square = jax.random.normal(key, (side, side), jnp.bfloat16)
    vector = jax.random.normal(key, (length,), jnp.float32)
    seconds = median_seconds(
        {
            "product": contender(jnp.matmul, square, square),
            "copy": contender(jnp.copy, vector),
            "pass": contender(lambda x: x + 1.0, vector),
        },
        repeats,
        turn_seconds=turn_seconds,
    )
    return {
        "flop_per_second": 2 * side**3 / seconds["product"],
        "bytes_per_second": 8 * length / min(seconds["copy"], seconds["pass"]),
        "copy_bytes_per_second": 8 * length / seconds["copy"],
    }
