"""A part of the gpu suite: steps of decoding against the copy.

What compiles can be compiled from shapes alone, before any array exists: `decode_program`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.measuring.memory import tree_bytes
from experiments.measuring.timing import (
    Carried,
    Contender,
    attempt,
    median_seconds,
    peak_bytes,
)
from pallas_kernels.decode.step import decode_step
from pallas_kernels.decode.step_sizes import StepInputs

NOMINAL_RATE = 3e12  # bytes per second; decides how many steps a loop takes


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """What is decoded: K = V = channels; `interpret` runs the Pallas kernel without a GPU."""

    batches: tuple[int, ...] = (1, 64, 512)
    heads: int = 16
    channels: int = 128
    dtype: str = "bfloat16"
    backends: tuple[str, ...] = ("pallas", "triton")
    interpret: bool = False
    most_steps: int = 1000


def decode_inputs(plan: DecodePlan, batch: int) -> tuple[StepInputs, jax.Array]:
    """A token's inputs and a state [B, H, K, V] float32; the log-decay is float32."""
    keys = jax.random.split(jax.random.key(batch), 7)
    rows = (batch, plan.heads, plan.channels)
    query, key, value, decay, erase, write = (
        jax.random.normal(k, rows, jnp.float32) for k in keys[:6]
    )
    inputs = StepInputs(
        query=query.astype(plan.dtype),
        key=(key / jnp.linalg.norm(key, axis=-1, keepdims=True)).astype(plan.dtype),
        value=value.astype(plan.dtype),
        log_decay=-jax.nn.softplus(decay),
        erase=jax.nn.sigmoid(erase).astype(plan.dtype),
        write=jax.nn.sigmoid(write).astype(plan.dtype),
    )
    return inputs, jax.random.normal(keys[6], (*rows, plan.channels), jnp.float32)


def decode_sizes(plan: DecodePlan, batch: int) -> tuple[int, int]:
    """Fewest bytes of a step (state read and written, inputs read, the output written), and those
    of the state."""
    inputs, memory = jax.eval_shape(functools.partial(decode_inputs, plan, batch))
    state = tree_bytes(memory)
    return 2 * state + tree_bytes(inputs) + tree_bytes(inputs.value), state


def decode_steps(plan: DecodePlan, moved: int, turn_seconds: float) -> int:
    """Steps of one compiled loop.

    They follow from the bytes a step moves and not from a measured rate: the loop's program, of
    which their number is a part, can then be compiled before anything is measured.
    """
    return max(8, min(plan.most_steps, math.ceil(turn_seconds * NOMINAL_RATE / moved)))


def decode_program(
    plan: DecodePlan, inputs: StepInputs, memory: Any, backend: str, steps: int
) -> jax.stages.Compiled:
    """So many steps in one compiled loop that hands the donated state on from step to step.

    At a small batch a step takes microseconds; called one by one it would be the launch from
    Python that is timed. The loop's token is the same each step, the state is the last step's.
    `inputs` and `memory` may be arrays or their shapes.
    """

    def loop(carry: tuple[jax.Array, jax.Array], inputs: StepInputs) -> tuple[Any, None]:
        def step(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return decode_step(
                *inputs,
                carry[1],
                scale=plan.channels**-0.5,
                backend=backend,
                interpret=plan.interpret,
            )

        return jax.lax.fori_loop(0, steps, step, carry), None

    carry = jax.eval_shape(lambda i, m: (jnp.zeros_like(i.value), m), inputs, memory)
    return jax.jit(loop, donate_argnums=0).lower(carry, inputs).compile()


def decode_contender(plan: DecodePlan, batch: int, backend: str, steps: int) -> Contender:
    """The loop of `decode_program` on numbers of its own."""
    inputs, memory = decode_inputs(plan, batch)
    compiled = decode_program(plan, inputs, memory, backend, steps)
    carry = (jnp.zeros_like(inputs.value), memory)
    return Contender(Carried(compiled, carry, inputs), (), peak_bytes(compiled))


def measure_decode(
    plan: DecodePlan, copy_rate: float, repeats: int, turn_seconds: float
) -> dict[str, Any]:
    """Seconds per step and the share of the copy's bytes per second, for each batch and backend.

    A state that is smaller than the chip's cache (batch 1: 1 MiB) is read from there, and its
    share may exceed 1: only large batches speak of the memory. A loop whose program needs more than
    one state and a half has copied it; `copies_state` says so.

    Args:
      plan: what is decoded.
      copy_rate: bytes per second of a copy.
      repeats, turn_seconds: as `median_seconds` takes them.
    """
    figures: dict[str, Any] = {"batches": {}, "left_out": {}}
    for batch in plan.batches:
        moved, state = decode_sizes(plan, batch)
        steps = decode_steps(plan, moved, turn_seconds)
        contenders = {}
        for backend in plan.backends:
            made = attempt(functools.partial(decode_contender, plan, batch, backend, steps))
            if isinstance(made, str):
                figures["left_out"][f"{backend}, batch {batch}"] = made
            else:
                contenders[backend] = made
        times = median_seconds(contenders, repeats, turn_seconds=turn_seconds)
        figures["batches"][str(batch)] = {
            backend: {
                "share_of_copy": round(moved * steps / seconds / copy_rate, 4),
                "seconds_a_step": seconds / steps,
                "steps_a_call": steps,
                "bytes_a_step": moved,
                "copies_state": contenders[backend].peak_bytes > 1.5 * state,
            }
            for backend, seconds in times.items()
        }
    return figures


def print_decode(part: Mapping[str, Any]) -> None:
    """Share of the copy's bandwidth first."""
    print(f"\n{'decode step':<26} {'of copy':>8} {'µs':>9}")
    for batch, backends in part["batches"].items():
        for backend, figures in backends.items():
            print(
                f"{f'batch {batch}, {backend}':<26} {figures['share_of_copy']:>8.0%} "
                f"{1e6 * figures['seconds_a_step']:>9.2f}"
                f"{'  (the state is copied)' if figures['copies_state'] else ''}"
            )
    for name, reason in part["left_out"].items():
        print(f"{name}: {reason}")
