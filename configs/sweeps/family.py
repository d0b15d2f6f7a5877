"""All the mixers, each with its published layer, at the parameters of GDN-2.

All have GDN-2's heads, so that recurrent states are of one size; Mamba's published shape (one key
head, many small value heads) is in configs/mamba2_1b3.py. The window of `swa` is 64 of 256
tokens of text and 8 of 40 of recall.

Command: python -m experiments.sweep --config=configs/sweeps/family.py --workdir=DIR
At scale: for every I below what --count prints,
  python -m experiments.sweep --config=configs/sweeps/family.py --workdir=DIR --index=I
      --base=configs/gdn2_100m.py --set.data.path=TOKENS
"""

from ml_collections import ConfigDict

from configs.sweeps import parts

MIXERS = {
    "gdn2": "GDN-2",
    "carve": "CARVE",
    "kda": "KDA",
    "gdn": "Gated DeltaNet",
    "comba": "Comba",
    "deltanet": "DeltaNet",
    "gla": "GLA",
    "retnet": "RetNet",
    "linear_attention": "linear attention",
    "mamba2": "Mamba-2",
    "mamba3": "Mamba-3",
    "mamba3_mimo": "Mamba-3 MIMO",
    "rwkv7": "RWKV-7",
    "attention": "attention",
    "swa": "sliding window",
}


def get_config() -> ConfigDict:
    """Fifteen mixers, two tasks, three seeds."""
    return parts.sweep(
        "family",
        "Which mixer learns best at the same parameters and tokens?",
        baseline="gdn2",
        tasks={"text": parts.text(window=64), "overwriting": parts.overwriting(window=8)},
        axes=[parts.axis("mixer", *(parts.mixer(name, title) for name, title in MIXERS.items()))],
        seeds=(0, 1, 2),
        equal_parameters=["*"],
    )
