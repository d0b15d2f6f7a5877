"""Content erase: a gate that sees memory against gates that do not, one layer of equal state.

`carve_blind` is CARVE without the content: the same write gate and initial weights.

Command: python -m experiments.sweep --config=configs/sweeps/content_erase.py --workdir=DIR --report
"""

from ml_collections import ConfigDict

from configs import content_erase
from configs.sweeps import parts


def get_config() -> ConfigDict:
    """Three variants, three seeds."""
    task = {
        "title": "content-dependent erase",
        "config": content_erase.get_config(),
        "metrics": (parts.ACCURACY, parts.LOSS),
    }
    blind = parts.mixer("carve", "CARVE without content", content=False)
    return parts.sweep(
        "content_erase",
        "Does a gate that sees memory erase or keep as a distant mode says, and a blind one not?",
        baseline="gdn2",
        tasks={"content_erase": ConfigDict(task)},
        axes=[
            parts.axis(
                "mixer",
                parts.mixer("gdn2", "GDN-2"),
                parts.mixer("carve", "CARVE"),
                {**blind, "label": "carve_blind"},
            )
        ],
        seeds=(0, 1, 2),
    )
