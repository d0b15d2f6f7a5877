"""The backend "mosaic": the Triton room's kernels, but for scans, which are Mosaic GPU's.

Those are the forward scans of both rules and the plain rule's backward scan. It has never run on a
GPU: it is asked for by name and chosen by nothing. Mosaic GPU is imported when a call is traced.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import device
from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.call import Content, Options, Request, Result
from pallas_kernels.tiling import padded
from pallas_kernels.triton.backend import Triton

OLDEST_JAX = (0, 11, 2)  # of those that compile the scan without a GPU, and interpret it
CAPABILITY = 9.0
WIDTHS = (64, 128)  # of keys and of values, in powers of two
NAMES = ("K", "V")
RANK = 16  # of the content projections


class Mosaic(Triton):
    """See `pallas_kernels.backends.Backend`."""

    def unsupported_reason(self, request: Request) -> str | None:
        """Why the kernels do not take such a call on this machine, or None."""
        reason = super().unsupported_reason(request) or _wrong_machine()
        if reason is not None or request.sizes is None or request.sizes["T"] == 1:
            return reason  # one token takes the decode step, which has no scan
        return _wrong_sizes(request) or self._wrong_tiles(request)

    def _wrong_tiles(self, request: Request) -> str | None:
        tiles = self.choose_tiles(request)
        if request.content and (request.gate_chunk or SPAN) <= SPAN // 2:
            return (
                f"its scan takes gate chunks of more than {SPAN // 2} tokens, and was given "
                f"gate_chunk={request.gate_chunk}"
            )
        if request.content and (request.rank or 0) > RANK:
            return (
                f"its scan takes content projections of rank {RANK} at most, and was given "
                f"{request.rank}"
            )
        if tiles.stretches != 1 and not request.content:
            return f"its scan takes no stretches, and was given Tiles(stretches={tiles.stretches})"
        if (tiles.chunk, tiles.product, tiles.solve) == (SPAN, "bf16", "parallel"):
            return None
        return (
            "its scan takes Tiles(chunk=64, product='bf16', solve='parallel') and was given "
            f"chunk={tiles.chunk}, product={tiles.product!r}, solve={tiles.solve!r}"
        )

    def run(
        self, inputs: Any, memory: jax.Array, options: Options, content: Content | None = None
    ) -> Result:
        """See `pallas_kernels.backends.Backend.run`."""
        if content is not None:  # whose scan does every level by itself: right without a promise
            options = options._replace(decay_floor=None)
        return super().run(inputs, memory, options, content)

    def forward_scan(self) -> Any:
        """The scan in Mosaic GPU."""
        from pallas_kernels.mosaic.scan import scan

        return scan

    def backward_scan(self) -> Any:
        """The plain rule's scan in Mosaic GPU; under a content gate the Triton room's."""
        from pallas_kernels.mosaic.scan import scan_backward

        return scan_backward


def _wrong_machine() -> str | None:
    if jax.__version_info__ < OLDEST_JAX:
        oldest = ".".join(map(str, OLDEST_JAX))
        return f"its scan needs JAX {oldest} or later, and this is {jax.__version__}"
    if device.capability() != CAPABILITY:
        return (
            f"its scan is made for compute capability {CAPABILITY} (H100, H200), and this "
            f"{jax.devices()[0].device_kind} has {device.capability()}"
        )
    return None


def _wrong_sizes(request: Request) -> str | None:
    assert request.sizes is not None
    if jnp.dtype(request.dtype) != jnp.bfloat16:
        given = jnp.dtype(request.dtype).name
        return f"its scan computes with bfloat16 inputs alone, and was given {given}"
    for name in NAMES:
        if padded(request.sizes[name]) not in WIDTHS:
            return (
                f"its scan takes heads of {WIDTHS[0] // 2 + 1} to {WIDTHS[-1]} channels, and "
                f"{name} is {request.sizes[name]}"
            )
    return None
