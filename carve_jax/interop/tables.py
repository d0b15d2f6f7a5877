"""The layouts: which PyTorch tensor holds which of our parameters, and how it is laid out.

One table serves both directions. An `Entry` says that the tensor `theirs` holds our parameters
`ours`; its `Transform` makes the one of the other and back, by moving elements alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """How one PyTorch tensor holds one or several of our parameters.

    Attributes:
      join: our parameters to the tensor.
      split: the tensor, with the shapes of our parameters, to those parameters.
    """

    join: Callable[[Sequence[np.ndarray]], np.ndarray]
    split: Callable[[np.ndarray, Sequence[Shape]], Sequence[np.ndarray]]


class Entry(NamedTuple):
    """A tensor's name, the paths of the parameters in it, and how they lie there."""

    theirs: str
    ours: tuple[str, ...]
    transform: Transform


def _split_rows(tensor: np.ndarray, shapes: Sequence[Shape]) -> Sequence[np.ndarray]:
    ends = np.cumsum([shape[1] for shape in shapes])[:-1]
    return [rows.T for rows in np.split(tensor, ends)]


def _join_groups(groups: int, kernels: Sequence[np.ndarray]) -> np.ndarray:
    width = kernels[0].shape[0]
    blocks = [kernel.T.reshape(groups, -1, width) for kernel in kernels]
    return np.concatenate(blocks, axis=1).reshape(-1, width)


def _split_groups(groups: int, tensor: np.ndarray, shapes: Sequence[Shape]) -> Sequence[np.ndarray]:
    width = tensor.shape[1]
    ends = np.cumsum([shape[1] // groups for shape in shapes])[:-1]
    blocks = np.split(tensor.reshape(groups, -1, width), ends, axis=1)
    return [block.reshape(-1, width).T for block in blocks]


SAME = Transform(lambda parts: parts[0], lambda tensor, _: [tensor])
# Linear layers: [out, in] there, [in, out] here.
LINEAR = Transform(lambda parts: parts[0].T, lambda tensor, _: [tensor.T])
# Depthwise convolutions: [channels, 1, width] there, [width, channels] here.
CONVOLUTION = Transform(lambda parts: parts[0].T[:, None], lambda tensor, _: [tensor[:, 0].T])
# Several linear layers of one input, their outputs one after the other.
STACKED_LINEAR = Transform(
    lambda parts: np.concatenate([part.T for part in parts], axis=0), _split_rows
)


def grouped_linear(groups: int) -> Transform:
    """Linear layers of one input, fused by groups of heads: [q … q k v] of each query group."""
    return Transform(
        functools.partial(_join_groups, groups), functools.partial(_split_groups, groups)
    )


def _linear(theirs: str, ours: str) -> Entry:
    return Entry(f"{theirs}.weight", (f"{ours}/kernel",), LINEAR)


def _same(theirs: str, ours: str) -> Entry:
    return Entry(theirs, (ours,), SAME)


# Parameters of a layer that it does not have, by its options, are left out of its table.
RECURRENT_LAYER = (
    _same("A_log", "A_log"),
    _same("dt_bias", "dt_bias"),
    *(_linear(f"{name}_proj", f"{name}_proj") for name in ("q", "k", "v")),
    *(Entry(f"{name}_conv1d.weight", (f"{name}_conv",), CONVOLUTION) for name in ("q", "k", "v")),
    *(_same(f"{name}_conv1d.bias", f"{name}_conv_bias") for name in ("q", "k", "v")),
    _linear("f_proj.0", "f_down"),
    _linear("f_proj.1", "f_up"),
    _linear("a_proj", "a_proj"),
    _linear("b_proj", "b_proj"),
    _linear("w_proj", "w_proj"),
    _linear("g_proj", "g_proj"),
    _linear("g_proj.0", "g_down"),
    _linear("g_proj.1", "g_up"),
    _same("g_proj.1.bias", "g_up/bias"),
    _same("o_norm.weight", "o_norm"),
    _linear("o_proj", "o_proj"),
)


def separate_attention(groups: int) -> tuple[Entry, ...]:
    """Softmax attention with a linear layer each for queries, keys, values and output."""
    del groups
    return tuple(_linear(f"{name}_proj", f"{name}_proj") for name in ("q", "k", "v", "o"))


def fused_attention(groups: int) -> tuple[Entry, ...]:
    """Softmax attention as lit_gpt has it: one linear layer for queries, keys and values."""
    kernels = ("q_proj/kernel", "k_proj/kernel", "v_proj/kernel")
    return (Entry("attn.weight", kernels, grouped_linear(groups)), _linear("proj", "o_proj"))


class Layer(NamedTuple):
    """A layer that a layout holds, and what a mixer must be to be that layer.

    Attributes:
      name: its class there.
      preset: the mixer of ours (`MIXERS`) that it is.
      changes: what it has otherwise than the preset, by field of `GateSpec`/`LayerSpec`.
      options: fields it leaves open, with their values; such options leave no trace in the
        weights, so it is for the mixer to say which is meant.
      grouped: it may have more value heads than key heads.
    """

    name: str
    preset: str
    changes: Mapping[str, Any] = MappingProxyType({})
    options: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
    grouped: bool = True


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of a whole model's tensors.

    Attributes:
      source: whose layout it is.
      embedding: name of the embedding.
      block: prefix of a residual block, with a place for its number.
      mixer: prefix of its mixer, after that of the block.
      around: its norms and MLP.
      final: the norm before the head.
      head: name of the output head.
      layers: the recurrent layers it holds.
      attention: the table of its softmax attention, given the number of query groups.
      attention_name: the class of that layer.
    """

    source: str
    embedding: str
    block: str
    mixer: str
    around: tuple[Entry, ...]
    final: str
    head: str
    layers: tuple[Layer, ...]
    attention: Callable[[int], tuple[Entry, ...]]
    attention_name: str

    def ends(self) -> tuple[Entry, Entry, Entry]:
        """Embedding, final norm and head."""
        return (
            _same(self.embedding, "embed/embedding"),
            _same(self.final, "final_norm/scale"),
            _linear(self.head.removesuffix(".weight"), "head"),
        )


_ANY = {"short_conv": (True, False), "conv_bias": (True, False)}
_ANY |= {"negative_eigenvalues": (True, False)}
_FLA = Layout(
    source="flash-linear-attention",
    embedding="model.embeddings.weight",
    block="model.layers.{}.",
    mixer="attn.",
    around=(
        _same("attn_norm.weight", "mixer_norm/scale"),
        _same("mlp_norm.weight", "mlp_norm/scale"),
        *(_linear(f"mlp.{name}_proj", f"mlp/{name}_proj") for name in ("gate", "up", "down")),
    ),
    final="model.norm.weight",
    head="lm_head.weight",
    layers=(
        Layer("GatedDeltaNet2", "gdn2", changes={"gate_activation": "sigmoid"}, options=_ANY),
        Layer("KimiDeltaAttention", "kda", options=_ANY | {"decay_form": ("softplus", "bounded")}),
        Layer(
            "GatedDeltaNet",
            "gdn",
            options=_ANY
            | {"output_gate": ("full", "none"), "gate_activation": ("silu", "sigmoid")},
        ),
        Layer(
            "DeltaNet",
            "deltanet",
            options=_ANY
            | {
                "output_gate": ("none", "full"),
                "activation": ("silu", "none", "elu_plus_one"),
            },
            grouped=False,
        ),
    ),
    attention=separate_attention,
    attention_name="Attention",
)
_OFFICIAL = Layout(
    source="the official GDN-2 code",
    embedding="transformer.wte.weight",
    block="transformer.h.{}.",
    mixer="attn.",
    around=(
        _same("norm_1.weight", "mixer_norm/scale"),
        _same("norm_2.weight", "mlp_norm/scale"),
        _linear("mlp.swiglu.w1", "mlp/gate_proj"),
        _linear("mlp.swiglu.w2", "mlp/up_proj"),
        _linear("mlp.swiglu.w3", "mlp/down_proj"),
    ),
    final="transformer.ln_f.weight",
    head="lm_head.weight",
    layers=(Layer("GatedDeltaNet2", "gdn2", options=_ANY),),
    attention=fused_attention,
    attention_name="CausalSelfAttention",
)
_PACKED = dataclasses.replace(
    _OFFICIAL,
    around=(
        *_OFFICIAL.around[:2],
        Entry(
            "mlp.swiglu.w12.weight", ("mlp/gate_proj/kernel", "mlp/up_proj/kernel"), STACKED_LINEAR
        ),
        _linear("mlp.swiglu.w3", "mlp/down_proj"),
    ),
)

LAYOUTS: Mapping[str, Layout] = {
    "fla": _FLA,
    "gdn2_official": _OFFICIAL,
    "gdn2_official_packed": _PACKED,
}
"""The layouts by name.

"fla" is flash-linear-attention 0.6.0: its layers `GatedDeltaNet2`, `KimiDeltaAttention`,
`GatedDeltaNet`, `DeltaNet` and `Attention`, and its `…ForCausalLM` models of them.
"gdn2_official" is the code published with GDN-2 (NVlabs/GatedDeltaNet-2, `lit_gpt`);
"gdn2_official_packed" is the same with the MLP's two first layers in one, as xformers packs them.
"""
