"""The backend "triton": Pallas kernels lowered through Triton, for calls of any size.

The kernels know whole tiles and channels in powers of two. Here calls are filled with null tokens
(k = v = q = 0, g = 0), which change no state and write nothing, and with channels of zeros, until
that holds; nothing is copied where it holds already.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import device
from pallas_kernels.call import Content, Options, Request, Result
from pallas_kernels.tiling import LARGEST, Tiles, choose, holds_state, padded
from pallas_kernels.triton.op import GateArrays, Inputs, make_plan, run
from pallas_kernels.triton.plan import Gate

MOST_ELEMENTS = 1 << 31  # the kernels count in 32 bits
Array = jax.Array


class Triton:
    """See `pallas_kernels.backends.Backend`."""

    def unsupported_reason(self, request: Request) -> str | None:
        """Why the kernels do not take such a call on this machine, or None."""
        if jnp.dtype(request.dtype) == jnp.float64:
            return "the kernels compute in float32 and were given float64 inputs"
        if request.sizes is None:
            return device.unsupported_reason()
        return _too_large(request.sizes) or device.unsupported_reason() or _state_too_large(request)

    def choose_tiles(self, request: Request) -> Tiles:
        """The tiles of such a call: its own, or the table's for this device."""
        if request.tiles is not None:
            return request.tiles
        assert request.sizes is not None
        kind = jax.devices()[0].device_kind
        sizes = request.sizes
        return choose(
            request.dtype, sizes["K"], sizes["V"], kind, request.content, device.capability()
        )

    def forward_scan(self) -> Any:
        """What scans forward in place of `scan.scan`, or None for that."""
        return None

    def backward_scan(self) -> Any:
        """What scans backward in place of `scan_backward.scan_backward`, or None for that."""
        return None

    def run(
        self, inputs: Any, memory: Array, options: Options, content: Content | None = None
    ) -> Result:
        """See `pallas_kernels.backends.Backend.run`."""
        length, width = inputs.value.shape[1], inputs.value.shape[3]
        sizes = {"K": inputs.query.shape[3], "V": width}
        tiles = self.choose_tiles(
            Request(inputs.query.dtype, sizes, content is not None, options.tiles)
        )
        gate = arrays = None
        if content is not None:
            tiles = dataclasses.replace(tiles, chunk=min(tiles.chunk, content.stride))
            gate = _gate(content, tiles, width)
        plan, whole = make_plan(
            tiles,
            options.scale,
            Inputs(*inputs),
            gate,
            options.decay_floor,
            device.mode() == "interpret",
        )
        plan = plan._replace(forward_scan=self.forward_scan(), backward_scan=self.backward_scan())
        if content is not None:
            arrays = _gate_arrays(content, whole // content.stride)
        filled = _fill(inputs, whole, gated=content is not None)
        output, last, sums = run(plan, filled, _transposed(memory), arrays)
        if content is not None and sums is not None:
            sums = sums[:, : content.mean.shape[1], :, :width]
        last = last[:, :, :width, : sizes["K"]].swapaxes(-1, -2)
        return Result(output[:, :length, :, :width], last, sums)


def _too_large(sizes: Any) -> str | None:
    for name in ("K", "V"):
        if sizes[name] > LARGEST:
            return f"heads have up to {LARGEST} channels, and {name} is {sizes[name]}"
    width = padded(max(sizes["K"], sizes["V"]))
    elements = sizes["B"] * sizes["T"] * sizes["N"] * width
    if elements < MOST_ELEMENTS:
        return None
    return (
        f"the kernels count elements in 32 bits, and B·T·N·{width} is {elements} (split the batch)"
    )


def _state_too_large(request: Request) -> str | None:
    sizes = request.sizes
    if not request.content or sizes is None or sizes["T"] == 1:
        return None
    if holds_state(request.dtype, sizes["K"], sizes["V"], device.capability()):
        return None
    return (
        "under a content gate a program of the kernels holds a whole state, and one of "
        f"K={sizes['K']}, V={sizes['V']} with {jnp.dtype(request.dtype).name} operands is too "
        "large here"
    )


def _gate(content: Content, tiles: Tiles, width: int) -> Gate:
    return Gate(
        tiles=content.stride // tiles.chunk,
        scale=content.scale,
        stop_gradient=content.stop_gradient,
        norm_eps=content.norm_eps,
        channels=width,
        dtype=jnp.dtype(content.dtype).name,
    )


def _gate_arrays(content: Content, chunks: int) -> GateArrays:
    missing = chunks - content.mean.shape[1]
    return GateArrays(
        down=_pad_axes(content.down.astype(jnp.float32), 1, 2),
        up=_pad_axes(content.up.astype(jnp.float32), 1, 2),
        content=_pad_axes(content.content, 2),
        partial_sum=_pad_axes(content.partial_sum, 2),
        mean=jnp.pad(content.mean, ((0, 0), (0, missing))) if missing else content.mean,
    )


def _pad_axes(x: Array, *axes: int) -> Array:
    """Zeros up to a power of two along the axes."""
    widths = [(0, 0)] * x.ndim
    for axis in axes:
        widths[axis] = (0, padded(x.shape[axis]) - x.shape[axis])
    return jnp.pad(x, widths) if any(w for _, w in widths) else x


def _fill(inputs: Any, length: int, gated: bool) -> Inputs:
    """Null tokens up to `length`, channels up to powers of two; a gate of one channel stays one."""

    def fill(name: str, x: Array) -> Array:
        if x.shape[3] > 1 or name in ("query", "key", "value") or (gated and name == "erase"):
            x = _pad_axes(x, 3)
        missing = length - x.shape[1]
        return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing else x

    return Inputs(**{name: fill(name, x) for name, x in inputs._asdict().items()})


def _transposed(memory: Array) -> Array:
    """[B, N, K, V] to the kernels' [B, N, V, K], channels in powers of two."""
    return _pad_axes(memory.swapaxes(-1, -2), -1, -2)
