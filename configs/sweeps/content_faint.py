"""Is the content too faint to learn from? Ways to make it heard sooner, one at a time and together.

Outputs are small (unit keys, scale K^-½), P_up starts at zero and its gradient is a small part of
the whole. `scale` multiplies P_down's initial values, `rate` P_up's learning rate, `bias` is where
the erase gate starts (half open without one); L is 4 on `erase` and 64 on `text` as it stands, and
divides the rows of both where it is changed.

Found (experiments/results/2026-11-28_content_faint): on `erase` louder content solves it in more
seeds, which is not shown; on `text` it moves the gates by up to 0.12 and is worth 0.0005 nats.
Duration: 75 runs of 25 s and 45 of 55 s each, two at a time on two cores of an AMD EPYC 9005.
Command: python -m experiments.sweep --config=configs/sweeps/content_faint.py --workdir=DIR
"""

from ml_collections import ConfigDict

from configs import content_erase
from configs.sweeps import parts

RATE = "optimizer.content_up_lr_factor"


def get_config() -> ConfigDict:
    """Fifteen variants; a task that needs content, and text; five seeds."""

    def changed(
        label: str, title: str, rate: float = 1.0, **gates: float | bool
    ) -> dict[str, object]:
        made = parts.mixer("carve", title, gates=gates)
        overrides = made["overrides"] | ({} if rate == 1.0 else {RATE: rate})
        return {**made, "label": label, "value": label, "overrides": overrides}

    return parts.sweep(
        "content_faint",
        "Is the content that CARVE's erase gate sees too faint to learn from?",
        baseline="carve",
        tasks={
            "erase": parts.asked("content-dependent erase", content_erase.get_config()),
            "text": parts.text(),
        },
        axes=[
            parts.axis(
                "content",
                parts.mixer("carve", "CARVE"),
                changed("none", "no content", content=False),
                *(changed(f"scale{n}", f"P_down × {n}", content_scale=float(n)) for n in (8, 64)),
                *(changed(f"rate{n}", f"P_up's rate × {n}", float(n)) for n in (4, 16)),
                changed("bias_shut", "erase from σ(−2)", erase_bias=-2.0),
                changed("bias_open", "erase from σ(2)", erase_bias=2.0),
                *(changed(f"rank{n}", f"rank {n}", content_rank=n) for n in (4, 64)),
                *(changed(f"L{n}", f"L = {n}", gate_chunk=n) for n in (2, 8)),
                changed("norm", "normalised", content_norm=True),
                changed("norm_rate16", "normalised, rate × 16", 16.0, content_norm=True),
                changed("scale64_rate16", "P_down × 64, rate × 16", 16.0, content_scale=64.0),
            )
        ],
    )
