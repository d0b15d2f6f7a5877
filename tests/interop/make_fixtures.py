"""Makes the parity fixtures with PyTorch and flash-linear-attention 0.6.0; run by hand, not by CI.

    PYTHONPATH=<the folder that holds fla> python tests/interop/make_fixtures.py

The layers run their own `forward` in float32 on a CPU. What is a Triton kernel in it is replaced:
the rules by flash-linear-attention's naive recurrent ones, the short convolution by PyTorch's, the
norms by their formulas. What the kernels do besides (L2 norm, gates, negative eigenvalues) follows
the documentation of their arguments.
"""

import functools
import inspect
import json
import math
import platform
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import configuration_utils

# flash-linear-attention asks for transformers 5, where the class has this name.
if not hasattr(configuration_utils, "PreTrainedConfig"):
    configuration_utils.PreTrainedConfig = configuration_utils.PretrainedConfig

import fla
from fla.layers import (
    DeltaNet,
    GatedDeltaNet,
    GatedDeltaNet2,
    KimiDeltaAttention,
    attn,
    delta_net,
    gated_deltanet,
    gdn2,
    kda,
)
from fla.models import (
    DeltaNetConfig,
    DeltaNetForCausalLM,
    GatedDeltaNetConfig,
    GatedDeltaNetForCausalLM,
    KDAConfig,
    KDAForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
)
from fla.modules import FusedRMSNormGated, RMSNorm, RotaryEmbedding, mlp
from fla.modules.causal_conv1d import ops as conv_ops
from fla.modules.rotary.ops import rotary_embedding_ref
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_rule.gate import naive_gdn_gate
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gdn2.naive import naive_recurrent_gdn2
from fla.ops.kda.gate import naive_kda_gate, naive_kda_lowerbound_gate
from fla.ops.kda.naive import naive_recurrent_kda

FOLDER = Path(__file__).parent / "fixtures"
D_MODEL, LENGTH = 24, 20
SIZES = {"hidden_size": D_MODEL, "num_heads": 2, "head_dim": 8, "expand_v": 2}
DELTANET_SIZES = {
    "hidden_size": D_MODEL,
    "num_heads": 2,
    "expand_k": 16 / D_MODEL,
    "expand_v": 32 / D_MODEL,
}
CASES = {
    "gdn2": (GatedDeltaNet2, SIZES),
    "gdn2_grouped": (
        GatedDeltaNet2,
        SIZES | {"num_v_heads": 4, "allow_neg_eigval": True, "conv_bias": True},
    ),
    "gdn2_no_conv": (GatedDeltaNet2, SIZES | {"use_short_conv": False}),
    "kda": (KimiDeltaAttention, SIZES),
    "kda_grouped": (KimiDeltaAttention, SIZES | {"num_v_heads": 4, "allow_neg_eigval": True}),
    "kda_safe": (KimiDeltaAttention, SIZES | {"safe_gate": True, "lower_bound": -5.0}),
    "gdn": (GatedDeltaNet, SIZES | {"allow_neg_eigval": True}),
    "gdn_grouped": (
        GatedDeltaNet,
        SIZES | {"num_v_heads": 4, "output_gate_activation": "sigmoid"},
    ),
    "deltanet": (DeltaNet, DELTANET_SIZES),
    "deltanet_gate": (DeltaNet, DELTANET_SIZES | {"use_gate": True, "allow_neg_eigval": True}),
}
ODD_SIZES = {"hidden_size": 22, "num_heads": 3, "head_dim": 6, "expand_v": 1.5, "conv_size": 3}
ODD = {
    "gdn2": (GatedDeltaNet2, ODD_SIZES | {"num_v_heads": 6}),
    "kda": (KimiDeltaAttention, ODD_SIZES | {"num_v_heads": 6, "conv_bias": True}),
    "gdn": (GatedDeltaNet, ODD_SIZES | {"num_v_heads": 6}),
    "deltanet": (
        DeltaNet,
        {"hidden_size": 22, "num_heads": 1, "expand_k": 0.5, "expand_v": 1.5, "conv_size": 3},
    ),
}
MODEL_SIZES = {
    "hidden_size": D_MODEL,
    "num_heads": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 40,
    "vocab_size": 50,
}
ATTENTION = {"layers": [1, 3], "num_heads": 4, "num_kv_heads": 2, "window_size": 8}
MODELS = {
    "kda": (
        KDAForCausalLM,
        KDAConfig,
        MODEL_SIZES | {"head_dim": 8, "expand_v": 2.0, "attn": ATTENTION},
    ),
    "gdn": (
        GatedDeltaNetForCausalLM,
        GatedDeltaNetConfig,
        MODEL_SIZES | {"head_dim": 8, "expand_v": 2.0, "num_v_heads": 4},
    ),
    "deltanet": (
        DeltaNetForCausalLM,
        DeltaNetConfig,
        MODEL_SIZES | {"expand_k": 16 / D_MODEL, "expand_v": 32 / D_MODEL},
    ),
    "transformer": (TransformerForCausalLM, TransformerConfig, MODEL_SIZES | {"num_kv_heads": 1}),
}


def l2_norm(x):
    """What every kernel does under `use_qk_l2norm_in_kernel`."""
    return x / torch.sqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def prepared(rule, q, k, options):
    """Queries and keys, normalised if asked; no option is ignored."""
    known = {
        "use_qk_l2norm_in_kernel",
        "use_gate_in_kernel",
        "use_beta_sigmoid_in_kernel",
        "allow_neg_eigval",
        "safe_gate",
        "state_v_first",
        "output_final_state",
    }
    idle = {"initial_state", "cu_seqlens"}
    for name, value in options.items():
        assert name in known or (name in idle and value is None), (rule, name, value)
    assert not options["output_final_state"]
    return (l2_norm(q), l2_norm(k)) if options["use_qk_l2norm_in_kernel"] else (q, k)


def erase_strength(beta, options):
    assert options["use_beta_sigmoid_in_kernel"]
    return beta.sigmoid() * (2.0 if options["allow_neg_eigval"] else 1.0)


def run_gdn2(q, k, v, g, b, w, **options):
    q, k = prepared("gdn2", q, k, options)
    return naive_recurrent_gdn2(q, k, v, g, b, w)


def run_kda(q, k, v, g, beta, A_log, dt_bias, lower_bound, **options):
    q, k = prepared("kda", q, k, options)
    assert options["use_gate_in_kernel"]
    gate = naive_kda_gate
    if lower_bound is not None:
        gate = functools.partial(naive_kda_lowerbound_gate, lower_bound=lower_bound)
    return naive_recurrent_kda(q, k, v, gate(g, A_log, dt_bias), erase_strength(beta, options))


def run_gdn(q, k, v, g, beta, A_log, dt_bias, **options):
    q, k = prepared("gdn", q, k, options)
    assert options["use_gate_in_kernel"]
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], dim=2) for x in (q, k))
    decay = naive_gdn_gate(g, A_log, dt_bias)
    return naive_recurrent_gated_delta_rule(q, k, v, erase_strength(beta, options), decay)


def run_deltanet(q, k, v, beta, **options):
    q, k = prepared("deltanet", q, k, options)
    output, _ = delta_rule_recurrence(*(x.transpose(1, 2) for x in (q, k, v, beta)))
    return output.transpose(1, 2), None


def convolve(x, weight, bias=None, activation=None, backend=None, **options):
    """`causal_conv1d`: x [B, T, D], weight [D, W]."""
    assert activation in ("silu", "swish")
    assert not any(value is not None and value is not False for value in options.values()), options
    width = weight.shape[1]
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    y = F.conv1d(padded, weight[:, None], bias, groups=weight.shape[0])
    return F.silu(y).transpose(1, 2), None


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def gated_norm_forward(self, x, g):
    gate = torch.sigmoid(g) if self.activation == "sigmoid" else F.silu(g)
    return rms_norm(x, self.weight, self.eps) * gate


def attend(q, k, v, causal, window_size):
    """`flash_attn_func`: [B, T, heads, channels], a window of (tokens before, 0)."""
    assert causal
    position = torch.arange(q.shape[1])
    distance = position[:, None] - position
    mask = (distance >= 0) & ((window_size[0] < 0) | (distance <= window_size[0]))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2)


def rotate(self, q, k, seqlen_offset, max_seqlen, cu_seqlens):
    assert seqlen_offset == 0
    assert cu_seqlens is None
    assert not self.interleaved
    angles = torch.arange(q.shape[1])[:, None] * self.inv_freq
    return tuple(rotary_embedding_ref(x, angles.cos(), angles.sin()) for x in (q, k))


def replace_kernels():
    """Put plain PyTorch where the layers call kernels; their `forward` stays."""
    gdn2.chunk_gdn2 = gdn2.fused_recurrent_gdn2 = run_gdn2
    kda.chunk_kda = kda.fused_recurrent_kda = run_kda
    gated_deltanet.chunk_gated_delta_rule = run_gdn
    gated_deltanet.fused_recurrent_gated_delta_rule = run_gdn
    delta_net.chunk_delta_rule = delta_net.fused_recurrent_delta_rule = run_deltanet
    conv_ops.causal_conv1d = gated_deltanet.causal_conv1d = convolve
    attn.flash_attn_func = attend
    RotaryEmbedding.forward = rotate
    mlp.swiglu = lambda gate, up: F.silu(gate) * up
    FusedRMSNormGated.forward = gated_norm_forward
    RMSNorm.forward = lambda self, x: rms_norm(x, self.weight, self.eps)


def fill(layer, seed):
    """Random weights of a size that makes every one of them count."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in layer.state_dict().items():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("A_log"):
            weight.copy_(0.5 + 0.5 * noise)
        elif name.endswith("norm.weight"):
            weight.copy_(1 + 0.3 * noise)
        elif weight.ndim == 1:
            weight.copy_(0.5 * noise)
        else:
            weight.copy_(noise / math.sqrt(weight[0].numel()))


def make_case(name, layer_class, options, seed, activation=None):
    layer = layer_class(**options).eval()
    if activation is not None:
        layer.o_norm.activation = activation
    fill(layer, seed)
    x = torch.randn((2, LENGTH, D_MODEL), generator=torch.Generator().manual_seed(1000 + seed))
    y = layer(x)[0]
    weights = {f"weights/{key}": value.numpy() for key, value in layer.state_dict().items()}
    about = {"layer": layer_class.__name__, "options": options} | versions()
    if activation is not None:
        about["output_gate_activation"] = activation
    np.savez(FOLDER / f"{name}.npz", x=x.numpy(), y=y.numpy(), about=json.dumps(about), **weights)
    print(name, len(weights), "weights, largest output", float(y.abs().max()))


def make_model_case(name):
    """Logits of a whole model; its plain norms and MLP are taken instead of the fused ones."""
    model_class, config, options = MODELS[name]
    plain = {"fuse_norm": False, "fuse_swiglu": False, "fuse_cross_entropy": False}
    model = model_class(set_options(config, options | plain)).eval()
    fill(model, 30)
    generator = torch.Generator().manual_seed(31)
    tokens = torch.randint(0, options["vocab_size"], (2, LENGTH), generator=generator)
    logits = model(tokens, use_cache=False).logits
    weights = {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
    about = {"model": model_class.__name__, "options": options} | versions()
    np.savez(
        FOLDER / f"model_{name}.npz",
        x=tokens.numpy().astype(np.int32),
        y=logits.numpy(),
        about=json.dumps(about),
        **weights,
    )
    print(name, len(weights), "weights, largest logit", float(logits.abs().max()))


def versions():
    return {
        "flash-linear-attention": fla.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def shapes(module):
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def set_options(constructor, options):
    """The options that `constructor` names: others it would swallow in silence."""
    names = inspect.signature(constructor.__init__).parameters
    assert set(options) <= set(names), set(options) - set(names)
    return constructor(**options)


@torch.no_grad()
def main():
    FOLDER.mkdir(exist_ok=True)
    replace_kernels()
    for seed, (name, (layer_class, options)) in enumerate(CASES.items()):
        make_case(name, layer_class, options, seed)
    # The official GDN-2 layer is this one with SiLU in the output gate.
    make_case("gdn2_official", GatedDeltaNet2, SIZES, 20, activation="silu")
    make_model_case("kda")
    layers = {
        name: {"layer": layer.__name__, "options": options, "shapes": shapes(layer(**options))}
        for name, (layer, options) in ODD.items()
    }
    models = {
        name: {
            "model": model.__name__,
            "options": options,
            "shapes": shapes(model(set_options(config, options))),
        }
        for name, (model, config, options) in MODELS.items()
    }
    text = json.dumps({"versions": versions(), "layers": layers, "models": models}, indent=1)
    (FOLDER / "shapes.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
