"""Content erase: a gate that sees memory against gates that do not, one layer of equal state.

`carve_norm` divides the content by its root mean square, `carve_blind` has none.

Expected (experiments/results/2026-11-25_content_erase.json): 1.00, 1.00 and 0.83 of the answers for
CARVE, 0.75 to 0.93 for GDN-2, 0.83 to 0.95 for CARVE without content. Only with content does a seed
solve the task; three seeds show no difference of the means.

Command: python -m experiments.sweep --config=configs/sweeps/content_erase.py --workdir=DIR --report
"""

from ml_collections import ConfigDict

from configs import content_erase
from configs.sweeps import parts


def get_config() -> ConfigDict:
    """Four variants, three seeds."""
    normed = parts.mixer("carve", "CARVE, content_norm", gates={"content_norm": True})
    blind = parts.mixer("carve", "CARVE without content", gates={"content": False})
    return parts.sweep(
        "content_erase",
        "Does a gate that sees memory erase or keep as a distant mode says, and a blind one not?",
        baseline="gdn2",
        tasks={"content_erase": parts.asked("content-dependent erase", content_erase.get_config())},
        axes=[
            parts.axis(
                "mixer",
                parts.mixer("gdn2", "GDN-2"),
                parts.mixer("carve", "CARVE"),
                {**normed, "label": "carve_norm"},
                {**blind, "label": "carve_blind"},
            )
        ],
        seeds=(0, 1, 2),
    )
