"""The mixers by name, each with its published gates, layer and initialisation.

| name | published as | decay | erase | write | layer |
|---|---|---|---|---|---|
| linear_attention | arXiv 2006.16236, 2210.10340 | none | none | 1 | φ = elu + 1, RMSNorm |
| retnet | arXiv 2307.08621 | constant a head | none | 1 | RoPE, RMSNorm, full SiLU gate |
| gla | arXiv 2312.06635 | channel, log σ / 16, rank 16 | none | 1 | RMSNorm, full SiLU gate |
| mamba2 | arXiv 2405.21060 | scalar | none | Δ | convolutions with bias, D, gate then RMSNorm |
| deltanet | arXiv 2406.06484 | none | scalar | tied | convolutions, L2, RMSNorm |
| gdn | arXiv 2412.06464 | scalar | scalar | tied | convolutions, L2, RMSNorm, full SiLU gate |
| kda | arXiv 2510.26692 | channel | scalar | tied | convolutions, L2, RMSNorm, low-rank σ gate |
| gdn2 | arXiv 2605.22791 | channel | channel | channel | as kda, with a SiLU gate |
| carve | arXiv 2606.27229 | channel | channel, content | scalar | as gdn2 |
| mamba3, mamba3_mimo | arXiv 2603.15569 | scalar | none | trapezoidal | ``mamba3.py`` |
| attention, swa | arXiv 1706.03762 | | | | RoPE; all tokens, or a sliding window |

Initialisation: projections Xavier uniform with gain 2^-2.5, as in the code of RetNet, GLA,
DeltaNet, Gated DeltaNet and GDN-2, or PyTorch's default for linear attention and Mamba;
A_log = log U(1, 16), for Gated DeltaNet log U(0, 16); dt_bias gives steps from 1e-3 to 1e-1. Where
a paper fixes the ratio of value to key channels (2 in RetNet, GLA and Gated DeltaNet) that is a
matter of sizes, not of the preset. Departures: linear attention's denominator is a norm, as in
TransNormer (2210.10340), so that its state is the rule's; KDA's projections start as GDN-2's;
RetNet's output projection does too, where its code has gain 2^-1.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from carve_jax.mixers.base import Mixer
from carve_jax.mixers.gated_delta import GatedDeltaMixer
from carve_jax.mixers.gates import GateSpec
from carve_jax.mixers.layer import LayerSpec
from carve_jax.mixers.mamba3 import Mamba3Mixer
from carve_jax.mixers.softmax import SoftmaxAttention

GATES: Mapping[str, GateSpec] = {
    "linear_attention": GateSpec(decay="none", erase="none", write="one"),
    "retnet": GateSpec(decay="constant", erase="none", write="one"),
    "gla": GateSpec(
        decay="channel", decay_form="logsigmoid", decay_rank=16, erase="none", write="one"
    ),
    "mamba2": GateSpec(decay="scalar", erase="none", write="timestep"),
    "deltanet": GateSpec(decay="none", erase="scalar", write="tied"),
    "gdn": GateSpec(decay="scalar", erase="scalar", write="tied"),
    "kda": GateSpec(decay="channel", erase="scalar", write="tied"),
    "gdn2": GateSpec(decay="channel", erase="channel", write="channel"),
    "carve": GateSpec(decay="channel", erase="channel", write="scalar", content=True),
}
"""The gates of each mixer that is the rule and nothing else."""

_NO_CONV: dict[str, Any] = {"short_conv": False, "value_activation": "none", "qk_norm": "none"}

LAYERS: Mapping[str, LayerSpec] = {
    "linear_attention": LayerSpec(
        **_NO_CONV, activation="elu_plus_one", output_gate="none", init="fan_in"
    ),
    "retnet": LayerSpec(**_NO_CONV, activation="none", rope=True, output_gate="full"),
    "gla": LayerSpec(**_NO_CONV, activation="none", output_gate="full"),
    "mamba2": LayerSpec(
        conv_bias=True,
        qk_norm="none",
        scale=1.0,
        gates_per="value",
        output_norm="layer",
        output_gate="full",
        skip=True,
        init="fan_in",
    ),
    "deltanet": LayerSpec(gates_per="value", output_gate="none"),
    "gdn": LayerSpec(gates_per="value", output_gate="full", least_rate=0.0),
    "kda": LayerSpec(gates_per="value", gate_activation="sigmoid"),
    "gdn2": LayerSpec(),
    "carve": LayerSpec(),
}
"""The layer around the rule in each of them."""

SOFTMAX = ("attention", "swa")
"""The mixers that are no recurrence."""


def _gated_delta(name: str, **fields: Any) -> GatedDeltaMixer:
    """The preset, with any field of its GateSpec and LayerSpec changed by name."""
    defaults: dict[str, Any] = {"gates": GATES[name], "layer": LAYERS[name]}
    for key, default in defaults.items():
        spec = fields.pop(key, default)
        known = {field.name for field in dataclasses.fields(spec)}
        changes = {field: fields.pop(field) for field in known & fields.keys()}
        defaults[key] = dataclasses.replace(spec, **changes)
    return GatedDeltaMixer(**defaults, **fields)


MIXERS: Mapping[str, Callable[..., Mixer]] = {
    **{name: functools.partial(_gated_delta, name) for name in GATES},
    "mamba3": Mamba3Mixer,
    "mamba3_mimo": functools.partial(Mamba3Mixer, mimo_rank=4),
    "attention": SoftmaxAttention,
    "swa": functools.partial(SoftmaxAttention, window=2048),
}
"""Constructors by name: ``MIXERS["carve"](num_heads=4, key_dim=64, value_dim=64)``.

Those of the gated delta family take the fields of ``GateSpec`` and ``LayerSpec`` too:
``MIXERS["gdn2"](…, write="scalar")``.
"""
