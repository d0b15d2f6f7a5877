"""The backends of the sequence kernels by name, the best first: a room each, and one entry here."""

from typing import Any, Protocol

import jax

from pallas_kernels.call import Content, Options, Request, Result
from pallas_kernels.mosaic.backend import Mosaic
from pallas_kernels.tiling import Tiles
from pallas_kernels.triton.backend import Triton


class Backend(Protocol):
    """A room of kernels for whole sequences of the gated delta rule, plain and under CARVE's gate.

    Notation of arXiv 2605.22791 (GDN-2) and 2606.27229 (CARVE).
    """

    def unsupported_reason(self, request: Request) -> str | None:
        """Why the kernels do not take such a call on this machine, in words, or None.

        Cheap, and asked while programs are traced: it computes nothing on a device.
        """

    def choose_tiles(self, request: Request) -> Tiles:
        """How the work of such a call, whose sizes are known, is cut on this machine."""

    def run(
        self, inputs: Any, memory: jax.Array, options: Options, content: Content | None = None
    ) -> Result:
        """The rule, differentiable in all arrays, for a call that is supported.

        Args:
          inputs: a NamedTuple of query, key [B, T, H, K], value [B, T, N, V], log_decay, erase
            [B, T, H, K or 1] and write [B, T, N, V or 1], in this order; `erase` holds logits
            under a content gate, then of K channels. T and the channels need be no powers of two.
          memory: the state before the first token [B, N, K, V] float32.
          options: scale, tiles and the promised floor of the decays.
          content: the content gate; its `mean` has an entry for each gate chunk begun or more.
        """


BACKENDS: dict[str, Backend] = {"triton": Triton(), "mosaic": Mosaic()}
CHOSEN = ("triton",)  # what "pallas" and None choose from; the others run where they are named
