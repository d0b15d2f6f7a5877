"""How many layers of attention a model wants: from pure CARVE to pure sliding windows.

The window is 64 of 256 tokens, so that what lies further back must come through a state. All have
the parameters of pure CARVE, by the width of their MLPs.

Command: python -m experiments.sweep --config=configs/sweeps/hybrid_ratio.py --workdir=DIR
At scale: for every I below what --count prints (layers must be a multiple of four),
  python -m experiments.sweep --config=configs/sweeps/hybrid_ratio.py --workdir=DIR --index=I
      --base=configs/carve_swa_1b3.py --set.data.path=TOKENS --set.mesh.fsdp=8
"""

from ml_collections import ConfigDict

from configs.sweeps import parts

RATIOS = {"carve": (1, 0), "3to1": (3, 1), "1to1": (1, 1), "1to3": (1, 3), "swa": (0, 1)}


def get_config() -> ConfigDict:
    """Five patterns of four layers, one task, three seeds."""
    patterns = [
        parts.value(
            label,
            f"CARVE : window = {recurrent} : {window}",
            {"model.pattern": ("carve",) * recurrent + ("swa",) * window},
            window / (recurrent + window),
        )
        for label, (recurrent, window) in RATIOS.items()
    ]
    return parts.sweep(
        "hybrid_ratio",
        "Which share of sliding-window layers serves a CARVE model best?",
        baseline="carve",
        tasks={"text": parts.text(layers=4, window=64)},
        axes=[parts.axis("window_share", *patterns)],
        seeds=(0, 1, 2),
        equal_parameters=["*"],
    )
