"""What an implementation of the rules is: what it takes, why not, and how it runs."""

import abc
from typing import NamedTuple

from carve_jax.ops.content_gate import CarveState, ContentGate
from carve_jax.ops.gated_delta.reference import RuleInputs
from carve_jax.shapes import Array, Float, Int
from pallas_kernels.call import Request
from pallas_kernels.tiling import Tiles


class Call(NamedTuple):
    """One call of a rule, its inputs checked.

    The last three are for those who know them: an implementation ignores the others' ways of
    cutting work, and a promise that saves it none.

    Attributes:
      inputs: the sequences; `erase` holds logits under a content gate.
      state: before the first token; the plain rule reads and writes `memory` alone.
      segment_ids: non-decreasing runs [B, T], or None.
      scale: factor of the query.
      gate: the content gate, or None for the plain rule.
      aligned: the call starts a gate chunk in every row.
      chunk_size: most tokens of a tile of `chunked`, under the plain rule.
      tiles: how kernels cut their work, where their table is not to say.
      log_decay_floor: a promise that no log-decay is less.
    """

    inputs: RuleInputs
    state: CarveState
    segment_ids: Int[Array, "B T"] | None
    scale: float
    gate: ContentGate | None = None
    aligned: bool = True
    chunk_size: int = 64
    tiles: Tiles | None = None
    log_decay_floor: float | None = None

    @property
    def request(self) -> Request:
        """What is known of the call without its arrays."""
        batch, length, heads, value_channels = self.inputs.value.shape
        sizes = {"B": batch, "T": length, "N": heads, "V": value_channels}
        sizes["K"] = self.inputs.query.shape[3]
        return Request(
            self.inputs.query.dtype,
            sizes,
            self.gate is not None,
            self.tiles,
            self.decay_floor,
            1 if self.gate is None else self.gate.lag,
            self.inputs.log_decay.shape[3] == 1,
            None if self.gate is None else self.gate.chunk,
            None if self.gate is None else self.gate.down.shape[2],
        )

    @property
    def decay_floor(self) -> float | None:
        """The promise as it holds once segments restart by a decay that keeps nothing."""
        return self.log_decay_floor if self.segment_ids is None else None


class Implementation(abc.ABC):
    """A way to compute both rules. The questions are asked in this order, each a reason in words
    or None; `implementation=None` goes on to the next implementation at the first reason."""

    def unsupported_reason(self, request: Request) -> str | None:
        """Why it cannot run such calls on this machine."""
        return None

    def unchosen_reason(self, request: Request) -> str | None:
        """Why it runs such calls where it is named, and is not chosen for them."""
        return None

    def distrusted_reason(self, request: Request) -> str | None:
        """Why its numbers would be wrong on this machine; may take a test, the first time."""
        return None

    @abc.abstractmethod
    def run(self, call: Call) -> tuple[Float[Array, "B T N V"], CarveState]:
        """Outputs in the dtype of the values, and the state after the last token."""
