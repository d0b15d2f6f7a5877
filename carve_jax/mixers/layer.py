"""What a gated delta layer does around the rule, as a value."""

import dataclasses
from collections.abc import Callable, Mapping

import jax

from carve_jax.mixers.gates import check_choices
from carve_jax.shapes import Array

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "elu_plus_one": lambda x: jax.nn.elu(x) + 1,
}


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """The layer around the rule; the defaults are GDN-2's. Invalid choices raise ValueError.

    Attributes:
      short_conv: depthwise causal convolutions on queries, keys and values.
      conv_bias: they have a bias.
      activation: of queries and keys: "silu", "none" or "elu_plus_one" (a feature map, φ > 0).
      value_activation: of values: "silu" or "none".
      qk_norm: "l2" (each query and key has norm 1) or "none".
      rope: rotary positions on queries and keys.
      query_correction: subtract from each query a learned multiple, one per key head, of its
        token's key (Comba).
      scale: of queries in the rule; None for K**-0.5.
      gates_per: decay and erase gate are one per "key" head or one per "value" head, which differ
        where values are grouped.
      output_norm: RMSNorm of each "head", then the gate; or the gate, then RMSNorm over the
        whole "layer" (Mamba-2).
      output_gate: "none", "full" (a projection) or "low_rank" (two, with a bias).
      gate_activation: of the output gate, "silu" or "sigmoid".
      skip: add D ⊙ value to the rule's output, one learned D per value head.
      init: of the projections: "xavier", uniform with gain 2^-2.5; or "fan_in", ±1/√fan_in,
        PyTorch's default, with the output projection divided by √(2·layers).
      least_rate: the initial exp(A_log) is uniform from here to 16.
    """

    short_conv: bool = True
    conv_bias: bool = False
    activation: str = "silu"
    value_activation: str = "silu"
    qk_norm: str = "l2"
    rope: bool = False
    query_correction: bool = False
    scale: float | None = None
    gates_per: str = "key"
    output_norm: str = "head"
    output_gate: str = "low_rank"
    gate_activation: str = "silu"
    skip: bool = False
    init: str = "xavier"
    least_rate: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        check_choices(
            self,
            {
                "activation": ("silu", "none", "elu_plus_one"),
                "value_activation": ("silu", "none"),
                "qk_norm": ("l2", "none"),
                "gates_per": ("key", "value"),
                "output_norm": ("head", "layer"),
                "output_gate": ("none", "full", "low_rank"),
                "gate_activation": ("silu", "sigmoid"),
                "init": ("xavier", "fan_in"),
            },
        )
