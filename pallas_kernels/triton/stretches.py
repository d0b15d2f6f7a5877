"""Few rows and heads: a part of the plain rule's sequence, scanned in stretches side by side.

A scan is one program for each row, head and block of value channels, and takes its tiles one after
another: where those are fewer than the card's multiprocessors, the rest of it is idle. Over a
stretch, though, the state becomes S' = A S + B, whatever S is (`carve_jax.ops.gated_delta.
context_parallel` has the same over devices). So a part is cut into S stretches, and

    B of each but the last      a scan from zero (from the state before the part for the first)
    A of each but the two ends  a scan from the identity, in which nothing is written
    the state before each       composed in order, so that no later token moves a bit
    outputs, R and states       the usual scans, from those states

each with S times the programs. Backward, dS before a stretch is Aᵀ dS + D, with D scanned from
zero; A is kept. What is parallel over spans knows nothing of stretches. Two scans and one of K
channels in place of one, each over a S-th of the tiles: it pays where S can be 4 or more.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.blocks.wy import Array
from pallas_kernels.triton.plan import Cut, Plan
from pallas_kernels.triton.scan import ScanOperands, ScanOutputs, scan
from pallas_kernels.triton.scan_backward import BackwardScanOutputs, scan_backward
from pallas_kernels.triton.span import Scores


class Starts(NamedTuple):
    """What the backward pass of a part in stretches begins from, transposed, float32.

    Attributes:
      states: before each stretch [B · S, N, V, K].
      carried: Aᵀ of each but the first and the last [B, S − 2, H, K, K]; None where S is 2.
    """

    states: Array
    carried: Array | None


def choose_stretches(asked: int, spans: int) -> int:
    """How many stretches to cut `spans` into, `asked` at most: a number that divides them where one
    is near, or inputs would be copied to be padded."""
    most = max(1, min(asked, spans))
    near = [count for count in range(most, most // 2, -1) if spans % count == 0]
    return near[0] if near else most


def scan_stretches(
    plan: Plan,
    x: ScanOperands,
    scores: Scores,
    memory: Array,
    part: int,
    *,
    output: Array | None = None,
    **others: Any,
) -> ScanOutputs:
    """`scan.scan` of one part in `plan.stretches`; its `starts` are for the backward pass.

    Args:
      plan: what is static; its `stretches` are 2 or more.
      x, scores, memory, part, output: as in `scan.scan`.
      others: what only a content gate gives.
    """
    count = plan.stretches
    carried = _carried(plan, scores, part)
    none = jnp.zeros((memory.shape[0], count - 2, *memory.shape[1:]), memory.dtype)
    first = jnp.concatenate([memory[:, None], none], axis=1)
    cut = Cut(count, 0, count - 1)
    added = scan(plan, x, scores, _as_rows(first), part, ends=True, cut=cut).memory
    added = added.reshape(first.shape)
    states = [memory, added[:, 0]]
    for i in range(1, count - 1):
        assert carried is not None
        states.append(_times(states[-1], carried[:, i - 1]) + added[:, i])
    starts = Starts(_as_rows(jnp.stack(states, axis=1)), carried)
    cut = Cut(count, 0, count)
    found = scan(plan, x, scores, starts.states, part, output=output, cut=cut)
    last = found.memory.reshape(memory.shape[0], count, *memory.shape[1:])[:, -1]
    return found._replace(memory=last, starts=starts)


def scan_stretches_again(
    plan: Plan, x: ScanOperands, scores: Scores, starts: Starts, part: int
) -> ScanOutputs:
    """The scan that leaves what the gradients need."""
    cut = Cut(plan.stretches, 0, plan.stretches)
    return scan(plan, x, scores, starts.states, part, replay=True, cut=cut)


def scan_stretches_backward(
    plan: Plan, scores: Scores, d_output: Array, d_memory: Array, part: int, carried: Array | None
) -> BackwardScanOutputs:
    """`scan_backward.scan_backward` of one part in stretches.

    Args:
      plan: what is static.
      scores, d_output, d_memory, part: as there.
      carried: of `Starts`.
    """
    count = plan.stretches
    none = jnp.zeros((d_memory.shape[0], count - 2, *d_memory.shape[1:]), d_memory.dtype)
    last = jnp.concatenate([none, d_memory[:, None]], axis=1)
    cut = Cut(count, 1, count - 1)
    back = scan_backward(plan, scores, d_output, _as_rows(last), part, ends=True, cut=cut)
    added = back.d_memory.reshape(last.shape)
    after = [d_memory, added[:, -1]]
    for i in reversed(range(1, count - 1)):
        assert carried is not None
        after.append(_times(after[-1], carried[:, i - 1].swapaxes(-1, -2)) + added[:, i - 1])
    cut = Cut(count, 0, count)
    ends = _as_rows(jnp.stack(after[::-1], axis=1))
    back = scan_backward(plan, scores, d_output, ends, part, cut=cut)
    first = back.d_memory.reshape(d_memory.shape[0], count, *d_memory.shape[1:])[:, 0]
    return back._replace(d_memory=first)


def _carried(plan: Plan, scores: Scores, part: int) -> Array | None:
    """Aᵀ [B, S − 2, H, K, K] of the stretches between the first and the last: what a scan makes of
    the identity. Key heads alone: value heads that share one share its A."""
    batch, _, heads, channels = scores.ends.shape
    count = plan.stretches - 2
    if count == 0:
        return None
    identity = jnp.eye(channels, dtype=jnp.float32)[None, None]
    identity = jnp.broadcast_to(identity, (batch * count, heads, channels, channels))
    nothing = ScanOperands(None, None, None)
    cut = Cut(plan.stretches, 1, count)
    found = scan(plan, nothing, scores, identity, part, ends=True, cut=cut).memory
    return found.reshape(batch, count, heads, channels, channels)


def _times(states: Array, carried: Array) -> Array:
    """States [B, N, V, K] times the A of their key heads [B, H, K, K]."""
    batch, heads = carried.shape[:2]
    grouped = states.reshape(batch, heads, -1, *states.shape[2:])
    found = jnp.einsum("bhgvk,bhkl->bhgvl", grouped, carried, precision="highest")
    return found.reshape(states.shape)


def _as_rows(states: Array) -> Array:
    """[B, S, …] as rows of a launch."""
    return states.reshape(-1, *states.shape[2:])
