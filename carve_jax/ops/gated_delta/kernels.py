"""The GPU kernels behind the rules: what they take, and how calls are laid out for them.

The kernels know whole tiles, gate chunks that start on tiles, and channels in powers of two. Here
rows are shifted and filled with null tokens (k = v = q = 0, g = 0), which change no state and
write nothing, until that holds; nothing is copied where it holds already.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.ops.content_gate import (
    CONTENT_NORM_EPS,
    CarveState,
    ContentGate,
    erase_gate,
    erase_shift,
)
from carve_jax.ops.gated_delta.reference import RESTART, RuleInputs, segment_starts
from carve_jax.shapes import Array, Float32, Int
from pallas_kernels import device
from pallas_kernels.decode.step import decode_step
from pallas_kernels.tiling import LARGEST, SPAN, Tiles, choose, holds_state, padded
from pallas_kernels.triton.op import GateArrays, Inputs, make_plan, run
from pallas_kernels.triton.plan import Gate

MOST_ELEMENTS = 1 << 31  # the kernels count in 32 bits


def why_not(
    dtype: jnp.dtype | str, sizes: Mapping[str, int] | None = None, content: bool = False
) -> str | None:
    """Why the kernels do not take inputs of this dtype and these sizes here, or None."""
    if jnp.dtype(dtype) == jnp.float64:
        return "the kernels compute in float32 and were given float64 inputs"
    if sizes is not None:
        for name in ("K", "V"):
            if sizes[name] > LARGEST:
                return f"heads have up to {LARGEST} channels, and {name} is {sizes[name]}"
        width = padded(max(sizes["K"], sizes["V"]))
        if sizes["B"] * sizes["T"] * sizes["N"] * width >= MOST_ELEMENTS:
            return (
                f"the kernels count elements in 32 bits, and B·T·N·{width} is "
                f"{sizes['B'] * sizes['T'] * sizes['N'] * width} (split the batch)"
            )
    reason = device.why_not()
    if reason is None and content and sizes is not None and sizes["T"] > 1:
        size = (sizes["K"], sizes["V"])
        if not holds_state(dtype, *size, device.capability()):
            return (
                "under a content gate a program of the kernels holds a whole state, and one of "
                f"K={size[0]}, V={size[1]} with {jnp.dtype(dtype).name} operands is too large here"
            )
    return reason


def _pad_axes(x: Array, *axes: int) -> Array:
    """Zeros up to a power of two along the axes."""
    widths = [(0, 0)] * x.ndim
    for axis in axes:
        widths[axis] = (0, padded(x.shape[axis]) - x.shape[axis])
    return jnp.pad(x, widths) if any(w for _, w in widths) else x


def _pad_inputs(inputs: RuleInputs, length: int, gated: bool) -> Inputs:
    """Null tokens up to `length`, channels up to powers of two; a gate of one channel stays one."""

    def pad(name: str, x: Array) -> Array:
        if x.shape[3] > 1 or name in ("query", "key", "value") or (gated and name == "erase"):
            x = _pad_axes(x, 3)
        missing = length - x.shape[1]
        return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing else x

    return Inputs(**{name: pad(name, x) for name, x in inputs._asdict().items()})


def _transposed(memory: Array) -> Array:
    """[B, N, K, V] to the kernels' [B, N, V, K], channels in powers of two."""
    return _pad_axes(memory.swapaxes(-1, -2), -1, -2)


def _restart(inputs: RuleInputs, starts: Array | None) -> RuleInputs:
    if starts is None:
        return inputs
    decay = inputs.log_decay.astype(jnp.float32)
    return inputs._replace(log_decay=jnp.where(starts[..., None, None], RESTART, decay))


def _starts(segment_ids: Array | None, inputs: RuleInputs) -> Array | None:
    if segment_ids is None:
        return None
    return segment_starts(segment_ids, *inputs.value.shape[:2])


def _interpret() -> bool:
    return device.mode() == "interpret"


def _tiles(inputs: RuleInputs, tiles: Tiles | None, content: bool) -> Tiles:
    if tiles is not None:
        return tiles
    kind = jax.devices()[0].device_kind
    query, value = inputs.query, inputs.value
    return choose(query.dtype, query.shape[3], value.shape[3], kind, content)


def pallas_rule(
    inputs: RuleInputs,
    memory: Float32[Array, "B N K V"],
    segment_ids: Int[Array, "B T"] | None,
    scale: float,
    tiles: Tiles | None = None,
    log_decay_floor: float | None = None,
) -> tuple[Array, Float32[Array, "B N K V"]]:
    """GDN-2 on the kernels; one token goes through the decode step."""
    channels, width = memory.shape[2:]
    if inputs.value.shape[1] == 1:
        return _decode(inputs, inputs.erase[:, 0], memory, scale)
    starts = _starts(segment_ids, inputs)
    floor = log_decay_floor if starts is None else None
    inputs = _restart(inputs, starts)
    tiles = _tiles(inputs, tiles, content=False)
    plan, length = make_plan(tiles, scale, Inputs(*inputs), None, floor, _interpret())
    output, last, _ = run(plan, _pad_inputs(inputs, length, False), _transposed(memory), None)
    output = output[:, : inputs.value.shape[1], :, :width]
    return output, last[:, :, :width, :channels].swapaxes(-1, -2)


def _decode(
    inputs: RuleInputs, erase: Array, memory: Array, scale: float
) -> tuple[Array, Float32[Array, "B N K V"]]:
    query, key, value, log_decay, _, write = (x[:, 0] for x in inputs)
    output, memory = decode_step(
        query, key, value, log_decay, erase, write, memory, scale=scale, interpret=_interpret()
    )
    return output[:, None], memory


def pallas_carve(
    inputs: RuleInputs,
    state: CarveState,
    segment_ids: Int[Array, "B T"] | None,
    scale: float,
    gate: ContentGate,
    aligned: bool,
    tiles: Tiles | None = None,
    log_decay_floor: float | None = None,
) -> tuple[Array, CarveState]:
    """CARVE on the kernels; `aligned` promises that the call starts a gate chunk."""
    if inputs.value.shape[1] == 1:
        return _decode_carve(inputs, state, scale, gate)
    channels, width = state.memory.shape[2:]
    tiles = _tiles(inputs, tiles, content=True)
    layout = Layout.make(gate.chunk, inputs.value.shape[1], None if aligned else state.position)
    tiles = dataclasses.replace(tiles, chunk=min(tiles.chunk, layout.span))
    settings = Gate(
        length=gate.chunk,
        tiles=layout.span // tiles.chunk,
        scale=gate.scale,
        stop_gradient=gate.stop_gradient,
        norm_eps=CONTENT_NORM_EPS if gate.norm else None,
        channels=width,
        dtype=jnp.dtype(gate.dtype).name,
    )
    starts = _starts(segment_ids, inputs)
    floor = log_decay_floor if starts is None else None
    laid = RuleInputs(*map(layout.lay, _restart(inputs, starts)))
    plan, length = make_plan(tiles, scale, Inputs(*laid), settings, floor, _interpret())
    mean = layout.means(starts, state.position.shape[0], length // layout.span)
    arrays = GateArrays(
        down=_pad_axes(gate.down.astype(jnp.float32), 1, 2),
        up=_pad_axes(gate.up.astype(jnp.float32), 1, 2),
        content=_pad_axes(state.content, 2),
        partial_sum=_pad_axes(state.partial_sum, 2),
        mean=mean,
    )
    padded_inputs = _pad_inputs(laid, length, gated=True)
    output, last, sums = run(plan, padded_inputs, _transposed(state.memory), arrays)
    assert sums is not None  # there is a gate
    memory = last[:, :, :width, :channels].swapaxes(-1, -2)
    ending = layout.ending(state, sums[..., :width], mean)
    return layout.unlay(output)[..., :width], CarveState(memory, *ending)


def _decode_carve(
    inputs: RuleInputs, state: CarveState, scale: float, gate: ContentGate
) -> tuple[Array, CarveState]:
    """One token of CARVE: its gate is made here, the state edited by the decode step."""
    heads = inputs.value.shape[2]

    def to_value_heads(x: Array) -> Array:
        return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)

    query, key, log_decay, logits = map(
        to_value_heads, (inputs.query, inputs.key, inputs.log_decay, inputs.erase)
    )
    shift = erase_shift(state.content[:, :, None], gate)[:, :, 0]
    erase = erase_gate(logits[:, 0].astype(jnp.float32), shift, gate).astype(logits.dtype)
    # Values in float32 make outputs in float32: content is their mean before any rounding.
    value = inputs.value.astype(jnp.float32)
    exact = RuleInputs(query, key, value, log_decay, logits, inputs.write)
    output, memory = _decode(exact, erase, state.memory, scale)
    partial_sum = state.partial_sum + output[:, 0]
    full = (state.position + 1 == gate.chunk)[:, None, None]
    return output.astype(inputs.value.dtype), CarveState(
        memory,
        jnp.where(full, partial_sum / gate.chunk, state.content),
        jnp.where(full, 0.0, partial_sum),
        (state.position + 1) % gate.chunk,
    )


class Layout(NamedTuple):
    """Where the tokens of a call stand among whole gate chunks.

    Attributes:
      chunk: L, tokens of a gate chunk.
      span: tokens that the kernels give a gate chunk: a power of two, or whole spans of 64.
      length: T, tokens of the call.
      position: tokens already in each row's first gate chunk [B], or None for none.
    """

    chunk: int
    span: int
    length: int
    position: Array | None

    @classmethod
    def make(cls, chunk: int, length: int, position: Array | None) -> "Layout":
        """The layout of a call."""
        span = padded(chunk) if chunk <= SPAN else -(-chunk // SPAN) * SPAN
        return cls(chunk, span, length, position)

    def lay(self, x: Array) -> Array:
        """[B, T, …] with null tokens where no token of the call stands."""
        if self.position is not None:
            shape = (self.length + self.chunk - 1, *x.shape[2:])
            x = jax.vmap(
                lambda row, start: jax.lax.dynamic_update_slice_in_dim(
                    jnp.zeros(shape, x.dtype), row, start, axis=0
                )
            )(x, self.position)
        if self.span == self.chunk:
            return x
        others = [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % self.chunk), *others])
        x = x.reshape(x.shape[0], -1, self.chunk, *x.shape[2:])
        x = jnp.pad(x, [(0, 0), (0, 0), (0, self.span - self.chunk), *others])
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    def unlay(self, x: Array) -> Array:
        """The call's tokens of [B, …, …] laid out so."""
        if self.span != self.chunk:
            x = x[:, : x.shape[1] // self.span * self.span]
            x = x.reshape(x.shape[0], -1, self.span, *x.shape[2:])[:, :, : self.chunk]
            x = x.reshape(x.shape[0], -1, *x.shape[3:])
        if self.position is None:
            return x[:, : self.length]
        return jax.vmap(
            lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, self.length, axis=0)
        )(x, self.position)

    def means(self, starts: Array | None, batch: int, chunks: int) -> Array:
        """[B, chunks]: 1/L, or 0 where the next gate chunk starts a segment."""
        mean = jnp.full((batch, chunks), 1.0 / self.chunk, jnp.float32)
        if starts is None:
            return mean
        starts = self.lay(starts)
        starts = jnp.pad(starts, ((0, 0), (0, chunks * self.span - starts.shape[1])))
        fresh = starts.reshape(batch, chunks, self.span).any(axis=2)
        following = jnp.pad(fresh[:, 1:], ((0, 0), (0, 1)))
        return jnp.where(following, 0.0, mean)

    def ending(self, state: CarveState, sums: Array, mean: Array) -> tuple[Array, Array, Array]:
        """Content, partial sum and position after the call, from the sums [B, chunks, N, V]."""
        position = jnp.zeros_like(state.position) if self.position is None else self.position
        end = position + self.length
        last = ((end - 1) // self.chunk)[:, None, None, None]
        contents = jnp.concatenate(
            [state.content[:, None], mean[:, :-1, None, None] * sums[:, :-1]], axis=1
        )
        content, partial_sum = (
            jnp.take_along_axis(x, last, axis=1)[:, 0] for x in (contents, sums)
        )
        full = (end % self.chunk == 0)[:, None, None]
        return (
            jnp.where(full, partial_sum / self.chunk, content),
            jnp.where(full, 0.0, partial_sum),
            end % self.chunk,
        )
