"""The scans of a part in Mosaic GPU: what `triton.scan` and `triton.scan_backward` do.

They take and give the same arrays, so that what is parallel over tiles stays the Triton room's.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.mosaic import gated, gated_memory, plain, plain_back
from pallas_kernels.mosaic.parts import BF16, BLOCK
from pallas_kernels.triton import scan_backward as triton_back
from pallas_kernels.triton.plan import Content, Plan
from pallas_kernels.triton.scan import ScanOperands, ScanOutputs
from pallas_kernels.triton.scan_backward import BackwardScanOutputs, GateInputs
from pallas_kernels.triton.span import Scores

Array = jax.Array


def scan(
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
    """Scan one part of the sequence; arguments and results are those of `triton.scan.scan`."""
    whole, length = x.value.shape[1], scores.tiles.shape[1]
    first = part * length if whole > length else 0
    if content is None:
        found: Any = _plain(plan, x, scores, memory, first, sums)
        all_sums = None if found.sums is None else found.sums[:, None]
    else:
        found = _gated(plan, x, scores, memory, first, content)
        all_sums = found.sums
    joined = _join(output, found.output, first, whole)
    return ScanOutputs(output=joined, memory=found.memory, sums=all_sums)


def _plain(
    plan: Plan, x: ScanOperands, scores: Scores, memory: Array, first: int, sums: bool
) -> plain.Outputs:
    batch, _, heads, width = x.value.shape
    sizes = plain.Sizes(
        batch=batch,
        value_heads=heads,
        key_heads=scores.tiles.shape[2],
        length=scores.tiles.shape[1],
        first=first,
        channels=memory.shape[3],
        width=width,
        groups=_groups(plan, width),
        write_channels=x.write.shape[3],
        scale=plan.scale,
        sums=sums,
        interpret=plan.interpret,
    )
    write = _write(x.write)
    return plain.run(
        sizes, plain.Inputs(x.value, write, scores.tiles, scores.squares, scores.ends, memory)
    )


def _gated(
    plan: Plan, x: ScanOperands, scores: Scores, memory: Array, first: int, content: Content
) -> gated_memory.Outputs:
    batch, _, heads, width = x.value.shape
    sizes = gated_memory.Sizes(
        batch=batch,
        value_heads=heads,
        key_heads=scores.tiles.shape[2],
        erase_heads=x.unapplied_erase.shape[2],
        length=scores.tiles.shape[1],
        first=first,
        channels=memory.shape[3],
        width=width,
        scale=plan.scale,
        chunks=content.mean.shape[1],
        gate=plan.gate,
        interpret=plan.interpret,
    )
    arrays = gated_memory.Inputs(
        value=x.value,
        write=_write(x.write),
        logits=x.unapplied_erase.astype(BF16),
        tiles=scores.tiles,
        squares=scores.squares,
        ends=scores.ends,
        memory=memory,
        down=_two_parts(content.down),
        up=_two_parts(content.up),
        content=content.content,
        partial_sum=content.partial_sum,
        mean=content.mean,
    )
    return gated.run(sizes, arrays)


def scan_backward(
    plan: Plan,
    scores: Scores,
    d_output: Array,
    d_memory: Array,
    part: int,
    gate: GateInputs | None = None,
) -> BackwardScanOutputs:
    """Scan one part backward; arguments and results are those of `triton.scan_backward`, which also
    does the content gate's."""
    if gate is not None:
        return triton_back.scan_backward(plan, scores, d_output, d_memory, part, gate)
    batch, whole, heads, width = d_output.shape
    length = scores.tiles.shape[1]
    sizes = plain_back.Sizes(
        batch=batch,
        value_heads=heads,
        key_heads=scores.tiles.shape[2],
        length=length,
        first=part * length if whole > length else 0,
        channels=d_memory.shape[3],
        width=width,
        groups=_groups(plan, width),
        scale=plan.scale,
        interpret=plan.interpret,
    )
    found = plain_back.run(
        sizes, plain_back.Inputs(d_output, scores.tiles, scores.squares, scores.ends, d_memory)
    )
    return BackwardScanOutputs(found.d_written, found.d_states, found.d_memory)


def _groups(plan: Plan, width: int) -> int:
    """Warpgroups of a program of the plain rule."""
    return max(1, min(width, plan.tiles.block_value) // BLOCK)


def _write(write: Array) -> Array:
    """w as the kernels read it: a copy into shared memory is of 16 bytes at least, so that a gate
    per head lies along the tokens, [B, N, T]."""
    write = write.astype(BF16)
    return write if write.shape[3] > 1 else write[..., 0].swapaxes(1, 2)


def _two_parts(x: Array) -> Array:
    """x [N, rows, columns] as [N, 2 · columns, rows]: rounded to bfloat16, then what is left."""
    x = x.swapaxes(1, 2).astype(jnp.float32)
    first = x.astype(BF16)
    return jnp.concatenate([first, (x - first.astype(jnp.float32)).astype(BF16)], axis=1)


def _join(output: Any, found: Array, first: int, whole: int) -> Array:
    """The outputs of the whole sequence, those of a part written."""
    batch, length, heads, width = found.shape
    if length == whole:
        return found
    if output is None:
        output = jnp.zeros((batch, whole, heads, width), found.dtype)
    return jax.lax.dynamic_update_slice_in_dim(output, found, first, axis=1)
