"""Few rows and heads: a part of the plain rule's sequence, scanned in stretches side by side.

A scan is one program for each row, head and block of value channels, and takes its tiles one after
another: where those are fewer than the card's multiprocessors, the rest of it is idle. Over a
stretch, though, the state S becomes M S + D, whatever S is (`carve_jax.ops.gated_delta.
context_parallel` has the same over devices). So a part is cut into n stretches, and

    D of each but the last      a scan from zero (from the state before the part for the first)
    M of each but the two ends  a scan from the identity, in which nothing is written
    the state before each       composed in order, so that no later token moves a bit
    outputs, R and states       the usual scans, from those states

each with n times the programs. Backward, the gradient of the state before a stretch is Mᵀ times
that of the state after it, and what a scan from zero adds; M is kept. What is parallel over spans
knows nothing of stretches. Two scans and one of K channels in place of one, each over an n-th of
the tiles.
"""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp

from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.blocks.wy import Array
from pallas_kernels.tiling import Tiles
from pallas_kernels.triton.plan import Content, Cut, Plan
from pallas_kernels.triton.scan import ScanOperands, ScanOutputs, scan
from pallas_kernels.triton.scan_backward import BackwardScanOutputs, scan_backward
from pallas_kernels.triton.span import Scores

PROGRAMS = 132  # that scan at once on an H100, one on each multiprocessor
SMALLEST_BLOCK = 32  # of value channels: below it a scan's instructions no longer get fewer
# Stretches that `Tiles.stretches` = 0 takes at least. Four are predicted to gain as much of 4,096
# tokens, by less than the model can be trusted.
FEWEST = 8


class Starts(NamedTuple):
    """What the backward pass of a part in stretches begins from, transposed, float32.

    Attributes:
      states: before each stretch [B · n, N, V, K].
      carried: Mᵀ of each but the first and the last [B, n − 2, H, K, K]; None where n is 2.
    """

    states: Array
    carried: Array | None


def for_few_heads(plan: Plan, heads: int, width: int, length: int, held: int) -> Plan:
    """The plain rule's plan for few rows and heads: in stretches, if asked for, or else with its
    value channels spread over programs. A part holds so many tokens at most."""
    programs = heads * (width // min(width, plan.tiles.block_value))
    spans, most = -(-length // SPAN), max(1, held // SPAN)
    count = choose_stretches(plan.tiles.stretches, programs, spans, most)
    if count > 1:
        return plan._replace(stretches=count)
    return plan._replace(tiles=_spread(plan.tiles, heads, width))


def _spread(tiles: Tiles, heads: int, width: int) -> Tiles:
    """Tiles for few heads: the value channels of the plain rule, which scan apart, are spread over
    programs until there are about `PROGRAMS`; blocks of 64 or fewer take 4 warps."""
    block = min(tiles.block_value, width)
    while block > SMALLEST_BLOCK and 2 * heads * (width // block) <= PROGRAMS:
        block //= 2
    warps = min(tiles.warps, 4) if block < min(tiles.block_value, width) else tiles.warps
    return dataclasses.replace(tiles, block_value=block, warps=warps)


def choose_stretches(asked: int, programs: int, spans: int, held: int) -> int:
    """How many stretches to cut a sequence's parts into: `asked` at most, or if that is 0 as many
    as `predicted_stretches` says; of those down to half as many, what pads the spans least.

    Args:
      asked: `Tiles.stretches`.
      programs: of a scan of whole parts.
      spans: of the sequence.
      held: spans of the longest part.
    """
    spans_of_part = min(spans, held)
    most = max(1, min(asked or predicted_stretches(programs, spans_of_part), spans_of_part))
    return min(range(most, most // 2, -1), key=lambda count: -(-spans // count) * count)


def predicted_stretches(programs: int, spans: int) -> int:
    """What `python -m experiments.plan --few_heads` predicts, at K = V = 128, to be nearly the
    fastest of forward and backward together: the most in powers of two that leave no program
    without a multiprocessor (`PROGRAMS`) and no more states to compose than a stretch has spans;
    1 where fewer than `FEWEST` would be left.

    Args:
      programs: of a scan of whole parts.
      spans: of a part.
    """
    most = min(PROGRAMS // programs, math.isqrt(spans))
    return 1 << (most.bit_length() - 1) if most >= FEWEST else 1


def scan_stretches(
    plan: Plan,
    x: ScanOperands,
    scores: Scores,
    memory: Array,
    part: int,
    *,
    content: Content | None = None,
    output: Array | None = None,
    sums: bool = False,
) -> ScanOutputs:
    """`scan.scan` of one part in `plan.stretches`; its `starts` are for the backward pass.

    Args:
      plan: what is static; its `stretches` are 2 or more.
      x, scores, memory, part, output: as in `scan.scan`.
      content, sums: None and False, as a content gate's rule takes no stretches.
    """
    assert content is None
    assert not sums
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
    """Mᵀ [B, n − 2, H, K, K] of the stretches between the first and the last: what a scan makes of
    the identity. Key heads alone: value heads that share one share its M."""
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
    """States [B, N, V, K] times the Mᵀ of their key heads [B, H, K, K]."""
    batch, heads = carried.shape[:2]
    grouped = states.reshape(batch, heads, -1, *states.shape[2:])
    found = jnp.einsum("bhgvk,bhkl->bhgvl", grouped, carried, precision="highest")
    return found.reshape(states.shape)


def _as_rows(states: Array) -> Array:
    """[B, n, …] as rows of a launch."""
    return states.reshape(-1, *states.shape[2:])
