"""The configuration of a language model."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from carve_jax.mixers import MIXERS
from carve_jax.mixers.changes import SECTIONS, Changes
from carve_jax.ops.gated_delta import check_implementation_name

REMAT = ("none", "full", "dots", "rule", "rule_and_dots")
COMPUTE_DTYPES = ("float32", "bfloat16")
OPTIONAL = ("num_key_heads", "attention_heads", "attention_kv_heads", "attention_head_dim")
AS_PUBLISHED = {name: changes() for name, changes in SECTIONS.items()}
# Fields that lay beside the sizes before gates had a section of their own, with their defaults of
# that time: None was the preset's own value, and the others are what every preset has.
FORMER: Mapping[str, Any] = {
    **dict.fromkeys(("decay", "decay_form", "erase", "write", "content")),
    "gate_chunk": 64,
    "content_rank": 16,
    **dict.fromkeys(("content_norm", "stop_gradient_content", "negative_eigenvalues"), False),
}


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Sizes and choices of a `LanguageModel`; plain Python values. Invalid ones: ValueError.

    Attributes:
      vocab_size: tokens in the vocabulary.
      d_model: width of the residual stream.
      layers: residual blocks, a multiple of the pattern's length.
      pattern: names of mixers (`MIXERS`), repeated through the layers.
      mlp_dim: hidden width of the SwiGLU MLP.
      num_heads: value heads of the gated delta mixers.
      num_key_heads: their heads of queries and keys; None for `num_heads`.
      key_dim: channels of a key head.
      value_dim: channels of a value head.
      conv_width: taps of their short convolution.
      gates: what all of them have otherwise than their presets' gates (`GateSpec`): a mapping
        of fields, kept as `GateChanges`.
      layer: the same of their layer (`LayerSpec`), kept as `LayerChanges`.
      mimo_rank: rank of "mamba3_mimo".
      attention_heads: query heads of softmax attention; None for `num_heads`.
      attention_kv_heads: its heads of keys and values; None for `attention_heads`.
      attention_head_dim: channels of its heads; None for `d_model // attention_heads`.
      window: tokens seen by "swa", the token itself included.
      rope_theta: base of the rotary embedding.
      norm_eps: of every RMSNorm.
      tie_embeddings: the output head is the embedding, transposed.
      remat: what backward computes again: "none", each block ("full"), or all of a block but
        its matrix products ("dots"), its gated delta rule ("rule") or both ("rule_and_dots").
      scan_layers: compile one repeat of the pattern and loop over it; False unrolls the loop.
        Function and parameters are the same.
      compute_dtype: "float32" or "bfloat16"; parameters and states are float32.
      implementation: of the gated delta rule; None for the best one here.
      chunk_size: tokens in a tile of the rule; changes no result but by rounding.
    """

    vocab_size: int = 257
    d_model: int = 256
    layers: int = 4
    pattern: tuple[str, ...] = ("carve",)
    mlp_dim: int = 704
    num_heads: int = 4
    num_key_heads: int | None = None
    key_dim: int = 64
    value_dim: int = 64
    conv_width: int = 4
    gates: Changes = AS_PUBLISHED["gates"]
    layer: Changes = AS_PUBLISHED["layer"]
    mimo_rank: int = 4
    attention_heads: int | None = None
    attention_kv_heads: int | None = None
    attention_head_dim: int | None = None
    window: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    remat: str = "none"
    scan_layers: bool = True
    compute_dtype: str = "float32"
    implementation: str | None = None
    chunk_size: int = 64

    def __post_init__(self) -> None:
        """Check every field; fill in those that follow from others."""
        if isinstance(self.pattern, str):
            raise ValueError(f"pattern={self.pattern!r} is a string; give a tuple of mixer names.")
        object.__setattr__(self, "pattern", tuple(self.pattern))
        for name, changes in SECTIONS.items():
            object.__setattr__(self, name, changes.of(getattr(self, name)))
        self._check_names()
        self._check_sizes()
        for name in dict.fromkeys(self.pattern):
            MIXERS[name].check(self)

    @property
    def repeats(self) -> int:
        """How often the pattern is repeated."""
        return self.layers // len(self.pattern)

    @property
    def segment_alignment(self) -> int:
        """Documents packed in a row start at multiples of this many tokens."""
        return math.lcm(*(MIXERS[name].segment_alignment(self) for name in self.pattern))

    @property
    def content_lag(self) -> int:
        """How many gate chunks back the outputs lie that some layer's rule reads; 0: none does."""
        return max(MIXERS[name].content_lag(self) for name in self.pattern)

    @property
    def content_chunk(self) -> int | None:
        """L of the gates that read the layer below; None where none does.

        Heads and channels of values are the model's, and L is that of `gates`, so that what one
        layer hands up has the shape that the next one reads.
        """
        entries = [MIXERS[name] for name in self.pattern]
        return next((e.segment_alignment(self) for e in entries if e.reads_layer_below(self)), None)

    @property
    def has_full_attention(self) -> bool:
        """Whether a layer sees all that came before, at a cost that grows with it."""
        return any(MIXERS[name].sees_all() for name in self.pattern)

    @property
    def query_heads(self) -> int:
        """Query heads of softmax attention."""
        return self.num_heads if self.attention_heads is None else self.attention_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values of softmax attention."""
        return self.query_heads if self.attention_kv_heads is None else self.attention_kv_heads

    @property
    def head_dim(self) -> int:
        """Channels of a head of softmax attention."""
        given = self.attention_head_dim
        return self.d_model // self.query_heads if given is None else given

    def _check_names(self) -> None:
        check_implementation_name(self.implementation)
        for name in self.pattern:
            if name not in MIXERS:
                near = difflib.get_close_matches(str(name), MIXERS, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"pattern has an unknown mixer {name!r}; did you mean {near!r}? "
                    f"There are {', '.join(MIXERS)}."
                )
        for field, allowed in (("remat", REMAT), ("compute_dtype", COMPUTE_DTYPES)):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"{field}={getattr(self, field)!r}; choose one of {', '.join(allowed)}."
                )

    def _check_sizes(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            counted = field.type is int or (field.name in OPTIONAL and value is not None)
            if counted and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name}={value!r}; it must be an integer of at least 1.")
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}; it must be above 0.")
        if not self.pattern or self.layers % len(self.pattern):
            raise ValueError(
                f"layers={self.layers} is no multiple of the pattern's {len(self.pattern)} mixers."
            )
        if self.num_heads % (self.num_key_heads or self.num_heads):
            raise ValueError(
                f"num_key_heads={self.num_key_heads} does not divide num_heads={self.num_heads}."
            )


def with_sections(model: Mapping[str, Any]) -> dict[str, Any]:
    """An LMConfig's saved fields, with those of gates and layer in their sections.

    Before they had sections, fields of the gates lay beside the sizes (`FORMER`). A default of
    that time is what every preset has, and becomes None; so does a field that was not there yet.

    Args:
      model: plain values, such as JSON gives back; what is no section is left as it is.
    """
    fields = {name: value for name, value in model.items() if name not in FORMER}
    former = {name: value for name, value in model.items() if FORMER.get(name, value) != value}
    for name, changes in SECTIONS.items():
        given = fields.get(name, {})
        if isinstance(given, Mapping):
            moved = former if name == "gates" else {}
            set_here = {field: value for field, value in given.items() if value is not None}
            fields[name] = dict.fromkeys(changes.kinds) | dict(given) | moved | set_here
    return fields
