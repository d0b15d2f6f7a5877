"""What a mixer says of itself: everything that the rest of the project asks of one by name."""

import abc
from collections.abc import Mapping
from typing import Any

from carve_jax.mixers.base import Mixer
from carve_jax.sharding import Axes

Config = Any  # An LMConfig; it is defined by what it is made of, the entries.

SHARED: Mapping[str, Axes] = {"o_proj": ("heads", "embed"), "D": ("heads",), "o_norm": (None,)}
BY_HEADS: Axes = ("embed", "heads")


class Entry(abc.ABC):
    """A mixer's entry in `MIXERS`. Called with sizes, it is the mixer's constructor.

    Attributes:
      source: where it was published.
      parameters: logical axes (`sharding.RULES`) of every parameter by the name it has in the
        mixer; of a bias, the last of them.
      undecayed: parameters that weight decay leaves alone, besides those called `…_bias`: what
        sets a time scale, an offset or a gain.
      uncut_sequence: why a mesh may not cut its sequence, as the subject and verb of a sentence;
        None where it may.
    """

    source: str
    parameters: Mapping[str, Axes]
    undecayed: frozenset[str] = frozenset({"D", "o_norm"})
    uncut_sequence: str | None = None

    @abc.abstractmethod
    def __call__(self, **fields: Any) -> Mixer:
        """The published mixer of these sizes, with any of its fields changed by name."""

    @abc.abstractmethod
    def of_model(self, config: Config) -> Mixer:
        """The mixer in a model of this configuration."""

    @abc.abstractmethod
    def forward_flops(self, config: Config, context: int) -> dict[str, float]:
        """Floating-point operations per token of one layer, projections apart, by part.

        Args:
          config: of the model.
          context: tokens of a sequence.
        """

    @abc.abstractmethod
    def cut_by_tensor(self, config: Config) -> dict[str, int]:
        """Sizes, by field, that the devices of the mesh's axis `tensor` must divide."""

    def may_be_replicated(self, config: Config) -> dict[str, int]:
        """Sizes of the logical axes that are replicated where `tensor` does not divide them."""
        del config
        return {}

    def check(self, config: Config) -> None:
        """Raise ValueError for a configuration in which this mixer cannot be built."""
        del config

    def state_size(self, config: Config) -> int:
        """Floats of recurrent memory in one layer; 0 without any."""
        return config.num_heads * config.key_dim * config.value_dim

    def sees_all(self) -> bool:
        """Whether it looks at every token that came before, at a cost that grows with them."""
        return False

    def content_lag(self, config: Config) -> int:
        """How many gate chunks back the outputs lie that its rule reads, 1 in CARVE; 0: none."""
        del config
        return 0

    def reads_layer_below(self, config: Config) -> bool:
        """Whether it takes content from the layer below and hands its own up.

        Such a mixer has `with_content`, `__call__` with a fourth argument and a third result.
        """
        del config
        return False

    def segment_alignment(self, config: Config) -> int:
        """Documents packed in a row start at multiples of this many tokens."""
        del config
        return 1


def recurrent_fields(config: Config) -> dict[str, Any]:
    """The fields that every recurrent mixer takes from a model's configuration."""
    return {
        "num_heads": config.num_heads,
        "num_key_heads": config.num_key_heads,
        "key_dim": config.key_dim,
        "value_dim": config.value_dim,
        "norm_eps": config.norm_eps,
        "output_scale": (2 * config.layers) ** -0.5,
        "compute_dtype": config.compute_dtype,
        "implementation": config.implementation,
        "chunk_size": config.chunk_size,
    }


def key_heads(config: Config) -> int:
    """Heads of queries and keys of a recurrent mixer."""
    return config.num_heads if config.num_key_heads is None else config.num_key_heads
