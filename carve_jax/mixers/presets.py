"""The mixers by name: each one's entry, with its published gates, layer and initialisation.

The pseudo-code of an entry is that of one head unless it says otherwise. Vectors are rows, σ is the
logistic function, `conv` a causal depthwise convolution of width 4, `l2` and `rms` divide by
a norm over the channels of a head. The layer of GDN-2 is written out; the others of the family are
read beside it: a line that is missing is the one of GDN-2.

Initialisation: projections Xavier uniform with gain 2^-2.5, as in the code of RetNet, GLA,
DeltaNet, Gated DeltaNet and GDN-2, or PyTorch's default for linear attention and Mamba;
A_log = log U(1, 16), for Gated DeltaNet log U(0, 16); dt_bias gives steps from 1e-3 to 1e-1. Where
a paper fixes the ratio of value to key channels (2 in RetNet, GLA and Gated DeltaNet) that is a
matter of sizes, not of the preset. Departures: linear attention's denominator is a norm, as in
TransNormer (2210.10340), so that its state is the rule's; KDA's projections start as GDN-2's;
RetNet's output projection does too, where its code has gain 2^-1.
"""

from collections.abc import Mapping
from typing import Any

from carve_jax.mixers.entry import Entry
from carve_jax.mixers.family import GatedDelta
from carve_jax.mixers.gates import GateSpec
from carve_jax.mixers.layer import LayerSpec
from carve_jax.mixers.mamba3 import Mamba3
from carve_jax.mixers.rwkv7 import RWKV7
from carve_jax.mixers.softmax import Softmax

_NO_CONV: dict[str, Any] = {"short_conv": False, "value_activation": "none", "qk_norm": "none"}

GDN2 = GatedDelta("arXiv 2605.22791, eq. 9 and 10")
"""Gated DeltaNet-2: every channel has gates of its own::

    q = l2(silu(conv(x W_q)))                       # [K]
    k = l2(silu(conv(x W_k)))                       # [K]
    v = silu(conv(x W_v))                           # [V]
    g = -exp(A_log) · softplus(x F_down F_up + dt_bias)     # [K], log-decay
    b = σ(x W_b)                                    # [K], erase
    w = σ(x W_w)                                    # [V], write
    for every token:
        S = Diag(exp g) S                           # [K, V]
        S = S + kᵀ (w ⊙ v − (b ⊙ k) S)
        o = K^-½ · q S                              # [V]
    y = concatenate heads of rms(o) ⊙ o_norm ⊙ silu(x G_down G_up + bias)
    return y W_o
"""

CARVE = GatedDelta("arXiv 2606.27229", gates=GateSpec(write="scalar", content=True))
"""CARVE: GDN-2 whose erase gate sees what the rule has read, and whose write gate is one number::

    m = mean of o over the tokens of the gate chunk before; 0 in the first      # [V]
    b = σ(x W_b + m P_down P_up)                    # [K]; P_down [V, R], P_up [R, K], from 0
    w = σ(x W_w)                                    # [1]
"""

KDA = GatedDelta(
    "arXiv 2510.26692",
    gates=GateSpec(erase="scalar", write="tied"),
    layer=LayerSpec(gates_per="value", gate_activation="sigmoid"),
)
"""Kimi Delta Attention: erase and write are one number per head, and the output gate is σ::

    b = w = σ(x W_b)                                # [1]
    y = concatenate heads of rms(o) ⊙ o_norm ⊙ σ(x G_down G_up + bias)
"""

GDN = GatedDelta(
    "arXiv 2412.06464",
    gates=GateSpec(decay="scalar", erase="scalar", write="tied"),
    layer=LayerSpec(gates_per="value", output_gate="full", least_rate=0.0),
)
"""Gated DeltaNet: KDA's gates with one decay per head, and an output gate of full rank::

    g = -exp(A_log) · softplus(x W_a + dt_bias)     # [1]
    b = w = σ(x W_b)                                # [1]
    y = concatenate heads of rms(o) ⊙ o_norm ⊙ silu(x W_g)
"""

COMBA = GatedDelta(
    "arXiv 2506.02475",
    gates=GateSpec(decay="scalar", erase="scalar", write="tied", closed_loop=True),
    layer=LayerSpec(
        query_correction=True,
        gates_per="value",
        output_gate="full",
        gate_activation="sigmoid",
        least_rate=0.0,
    ),
)
"""Comba: Gated DeltaNet whose edit sees the state before its decay, and whose query is corrected::

    q = l2(silu(conv(x W_q))) − d · k               # [K]; d one number per head, from 1
    g = -exp(A_log) · softplus(x W_a + dt_bias)     # [1]
    β = σ(x W_b)                                    # [1], write
    for every token:
        S = exp(g) S + kᵀ (β · v − σ(s) · β · k S)  # k S of the S before; s one per head, from 1
        o = K^-½ · q S
    y = concatenate heads of rms(o) ⊙ o_norm ⊙ σ(x W_g)

So the rule's erase gate is σ(s)·β·exp(−g). Departures: g is at least −20, where the rest of a state
is below the rounding of float32; queries are normed before they are corrected, where the code in
flash-linear-attention norms corrected ones, and norms the scaled key too, so that σ(s) has no part
there.
"""

DELTANET = GatedDelta(
    "arXiv 2406.06484",
    gates=GateSpec(decay="none", erase="scalar", write="tied"),
    layer=LayerSpec(gates_per="value", output_gate="none"),
)
"""DeltaNet: nothing decays, and nothing gates the output::

    g = 0
    b = w = σ(x W_b)                                # [1]
    y = concatenate heads of rms(o) ⊙ o_norm
"""

GLA = GatedDelta(
    "arXiv 2312.06635",
    gates=GateSpec(
        decay="channel", decay_form="logsigmoid", decay_rank=16, erase="none", write="one"
    ),
    layer=LayerSpec(**_NO_CONV, activation="none", output_gate="full"),
)
"""Gated linear attention: a decay for each key channel, and no erase::

    q, k, v = x W_q, x W_k, x W_v
    g = log σ(x F_down F_up + bias) / 16            # [K]; F_down has 16 columns
    for every token:
        S = Diag(exp g) S + kᵀ v
        o = K^-½ · q S
    y = concatenate heads of rms(o) ⊙ o_norm ⊙ silu(x W_g)
"""

RETNET = GatedDelta(
    "arXiv 2307.08621",
    gates=GateSpec(decay="constant", erase="none", write="one"),
    layer=LayerSpec(**_NO_CONV, activation="none", rope=True, output_gate="full"),
)
"""RetNet: a constant decay for each head, and rotary positions::

    q, k, v = rope(x W_q), rope(x W_k), x W_v
    g = log(1 − 2^(−5−h))                           # [1], of head h = 0, 1, …
    for every token:
        S = exp(g) S + kᵀ v
        o = K^-½ · q S
    y = concatenate heads of rms(o) ⊙ o_norm ⊙ silu(x W_g)
"""

MAMBA2 = GatedDelta(
    "arXiv 2405.21060",
    gates=GateSpec(decay="scalar", erase="none", write="timestep"),
    layer=LayerSpec(
        conv_bias=True,
        qk_norm="none",
        scale=1.0,
        gates_per="value",
        output_norm="layer",
        output_gate="full",
        skip=True,
        init="fan_in",
    ),
)
"""Mamba-2 (SSD): the time step Δ makes both decay and write; q and k are its C and B::

    q, k, v = silu(conv(x W_q) + bias), silu(conv(x W_k) + bias), silu(conv(x W_v) + bias)
    Δ = softplus(x W_a + dt_bias)                   # [1]
    for every token:
        S = exp(−exp(A_log) · Δ) S + kᵀ (Δ · v)
        o = q S + D · v
    y = rms over all heads of (concatenate heads of o ⊙ silu(x W_g)) ⊙ o_norm
    return y W_o
"""

LINEAR_ATTENTION = GatedDelta(
    "arXiv 2006.16236; its norm: arXiv 2210.10340",
    gates=GateSpec(decay="none", erase="none", write="one"),
    layer=LayerSpec(**_NO_CONV, activation="elu_plus_one", output_gate="none", init="fan_in"),
)
"""Linear attention: the sum of all key-value products::

    q, k, v = elu(x W_q) + 1, elu(x W_k) + 1, x W_v
    for every token:
        S = S + kᵀ v
        o = K^-½ · q S
    y = concatenate heads of rms(o) ⊙ o_norm
"""

FAMILY: Mapping[str, GatedDelta] = {
    "linear_attention": LINEAR_ATTENTION,
    "retnet": RETNET,
    "gla": GLA,
    "mamba2": MAMBA2,
    "deltanet": DELTANET,
    "gdn": GDN,
    "kda": KDA,
    "comba": COMBA,
    "gdn2": GDN2,
    "carve": CARVE,
}
"""The mixers that are the rule, with gates and a layer, and nothing else."""

MIXERS: Mapping[str, Entry] = {
    **FAMILY,
    "mamba3": Mamba3("arXiv 2603.15569"),
    "mamba3_mimo": Mamba3("arXiv 2603.15569", mimo=True),
    "rwkv7": RWKV7("arXiv 2503.14456"),
    "attention": Softmax("arXiv 1706.03762; RoPE: arXiv 2104.09864"),
    "swa": Softmax("arXiv 2004.05150; RoPE: arXiv 2104.09864", sliding=True),
}
"""Entries by name, each of which builds its mixer: `MIXERS["carve"](num_heads=4, key_dim=64,
value_dim=64)`.

Those of the gated delta family take the fields of `GateSpec` and `LayerSpec` too:
`MIXERS["gdn2"](…, write="scalar")`.
"""
