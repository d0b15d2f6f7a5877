"""Fair timing: contenders take turns within one run, and medians are compared."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Contender(NamedTuple):
    """A compiled computation and the arrays it is called with.

    Attributes:
      compiled: what to time.
      arguments: its inputs.
      peak_bytes: arguments, outputs and temporaries of the compiled program.
    """

    compiled: Callable[..., Any]
    arguments: tuple
    peak_bytes: int


def contender(function: Callable[..., Any], *arguments: Any) -> Contender:
    """Compile a function for these arguments."""
    compiled = jax.jit(function).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend reports no memory"
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return Contender(compiled, arguments, peak)


def with_gradients(function: Callable[..., Any], cotangent: jax.Array) -> Callable[..., Any]:
    """The function's output and the gradients of ⟨output, cotangent⟩ in every argument."""

    def run(*arguments: Any) -> Any:
        output, pull = jax.vjp(function, *arguments)
        return output, pull(cotangent.astype(output.dtype))

    return run


def median_seconds(
    contenders: Mapping[str, Contender], repeats: int, seconds: float = 60.0
) -> dict[str, float]:
    """Median time of each contender over `repeats` rounds.

    Contenders take turns, so that whatever else the machine does falls on all alike. A turn is one
    run to settle caches and the allocator after the contender before, and one that is timed. A
    contender whose timed runs took more than `seconds`, three of them at least, sits the rest out.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, (compiled, arguments, _) in contenders.items():
            if len(times[name]) >= 3 and sum(times[name]) > seconds:
                continue
            jax.block_until_ready(compiled(*arguments))
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


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
