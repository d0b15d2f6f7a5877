"""Whose outputs the erase gate reads, on content-dependent erase, in one layer and in two.

`two_back` reads the gate chunk before the one before, `below` the layer below, whose first layer is
blind: in one layer it can do no more than `blind`, in two the upper one is told what the lower one
holds. With gate chunks of 4 tokens the mode lies far enough behind for all of them.

Command: python -m experiments.sweep --config=configs/sweeps/content_sources.py --workdir=DIR
"""

from ml_collections import ConfigDict

from configs import content_erase
from configs.sweeps import parts


def get_config() -> ConfigDict:
    """Five variants, one layer and two, five seeds."""

    def carve(label: str, title: str, **gates: str | bool) -> dict[str, object]:
        return {**parts.mixer("carve", title, gates=gates), "label": label, "value": label}

    deeper = content_erase.get_config()
    deeper.model.layers = 2
    return parts.sweep(
        "content_sources",
        "Must a gate see its own layer's memory at once, or is it enough later, or from below?",
        baseline="gdn2",
        tasks={
            "one_layer": parts.asked("one layer", content_erase.get_config()),
            "two_layers": parts.asked("two layers", deeper),
        },
        axes=[
            parts.axis(
                "content",
                parts.mixer("gdn2", "GDN-2"),
                carve("blind", "CARVE without content", content=False),
                parts.mixer("carve", "CARVE (the gate chunk before)"),
                carve("two_back", "two gate chunks back", content_source="two_chunks_back"),
                carve("below", "the layer below", content_source="previous_layer"),
            )
        ],
    )
