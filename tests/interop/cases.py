"""Targets of weights, and the names and shapes that they have in PyTorch."""

import json
from pathlib import Path

import numpy as np

from carve_jax.mixers import MIXERS
from carve_jax.model import LMConfig

SHAPES = json.loads((Path(__file__).parent / "fixtures" / "shapes.json").read_text())
HEADS = {"num_heads": 4, "num_key_heads": 2, "key_dim": 8, "value_dim": 16}
FLA_SIZES = {"vocab_size": 50, "d_model": 24, "layers": 4, "mlp_dim": 40} | HEADS
CONFIGS = {
    "kda": LMConfig(
        **FLA_SIZES | {"num_heads": 2, "num_key_heads": None},
        pattern=("kda", "swa"),
        attention_heads=4,
        attention_kv_heads=2,
    ),
    "gdn": LMConfig(**FLA_SIZES, pattern=("gdn",)),
    "deltanet": LMConfig(
        **FLA_SIZES | {"num_heads": 2, "num_key_heads": None}, pattern=("deltanet",)
    ),
    "transformer": LMConfig(
        **FLA_SIZES, pattern=("attention",), attention_heads=2, attention_kv_heads=1
    ),
}
OFFICIAL = LMConfig(
    **FLA_SIZES | {"num_key_heads": None},
    pattern=("gdn2", "swa"),
    attention_heads=4,
    attention_kv_heads=2,
)
ODD = {
    "gdn2": MIXERS["gdn2"](
        num_heads=6,
        num_key_heads=3,
        key_dim=6,
        value_dim=9,
        conv_width=3,
        gate_activation="sigmoid",
    ),
    "kda": MIXERS["kda"](
        num_heads=6, num_key_heads=3, key_dim=6, value_dim=9, conv_width=3, conv_bias=True
    ),
    "gdn": MIXERS["gdn"](num_heads=6, num_key_heads=3, key_dim=6, value_dim=9, conv_width=3),
    "deltanet": MIXERS["deltanet"](num_heads=1, key_dim=11, value_dim=33, conv_width=3),
}
KDA, GDN2 = ODD["kda"], ODD["gdn2"]


def random_weights(shapes, dtype=np.float32):
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def official_shapes(config, packed=False):
    """Names and shapes of lit_gpt's state dict, by arithmetic."""
    d, n, k, v = config.d_model, config.num_heads, config.key_dim, config.value_dim
    gdn2 = {"A_log": (n,), "dt_bias": (n * k,), "o_norm.weight": (v,), "o_proj.weight": (d, n * v)}
    gdn2 |= {f"{name}_proj.weight": (n * k, d) for name in "qkb"}
    gdn2 |= {f"{name}_proj.weight": (n * v, d) for name in "vw"}
    gdn2 |= {
        f"{name}_conv1d.weight": (n * size, 1, 4)
        for name, size in zip("qkv", (k, k, v), strict=True)
    }
    gdn2 |= {"f_proj.0.weight": (v, d), "f_proj.1.weight": (n * k, v)}
    gdn2 |= {"g_proj.0.weight": (v, d), "g_proj.1.weight": (n * v, v), "g_proj.1.bias": (n * v,)}
    fused = (config.query_heads + 2 * config.kv_heads) * config.head_dim
    attention = {"attn.weight": (fused, d), "proj.weight": (d, d)}
    shapes = {"lm_head.weight": (config.vocab_size, d)}
    shapes |= {"transformer.wte.weight": (config.vocab_size, d), "transformer.ln_f.weight": (d,)}
    mlp = {"w1.weight": (config.mlp_dim, d), "w2.weight": (config.mlp_dim, d)}
    mlp = {"w12.weight": (2 * config.mlp_dim, d)} if packed else mlp
    mlp |= {"w3.weight": (d, config.mlp_dim)}
    for i in range(config.layers):
        block = {"norm_1.weight": (d,), "norm_2.weight": (d,)}
        block |= {f"attn.{name}": s for name, s in (gdn2, attention)[i % 2].items()}
        block |= {f"mlp.swiglu.{name}": s for name, s in mlp.items()}
        shapes |= {f"transformer.h.{i}.{name}": s for name, s in block.items()}
    return shapes


MODELS = {
    name: (config, "fla", SHAPES["models"][name]["shapes"]) for name, config in CONFIGS.items()
}
MODELS["official"] = (OFFICIAL, "gdn2_official", official_shapes(OFFICIAL))
MODELS["packed"] = (OFFICIAL, "gdn2_official_packed", official_shapes(OFFICIAL, packed=True))
TARGETS = MODELS | {
    f"{name}_layer": (mixer, "fla", SHAPES["layers"][name]["shapes"]) for name, mixer in ODD.items()
}
