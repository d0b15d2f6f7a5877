"""CARVE's content gate: how long its chunks, how wide, with a gradient or not, raw or normalised.

One thing is changed at a time from CARVE as published (L = 64, rank 16, raw, with a gradient).
Documents start at multiples of L, so a longer L leaves a few more positions empty.

Found, of L = 16, 64 and 256 alone (experiments/results/2026-11-28_content_gate): no difference.
Command: python -m experiments.sweep --config=configs/sweeps/content_gate.py --workdir=DIR
At scale: for every I below what --count prints,
  python -m experiments.sweep --config=configs/sweeps/content_gate.py --workdir=DIR --index=I
      --base=configs/carve_100m.py --set.data.path=TOKENS
"""

from ml_collections import ConfigDict

from configs.sweeps import parts


def get_config() -> ConfigDict:
    """Twelve variants, one task in rows of 512 tokens (two chunks of the longest), three seeds."""

    def changed(label: str, title: str, **gates: int | bool) -> dict[str, object]:
        return {**parts.mixer("carve", title, gates=gates), "label": label, "value": label}

    text = parts.text()
    text.config.update({"sequence_length": 512, "batch_size": 4})
    return parts.sweep(
        "content_gate",
        "How should the content that CARVE's erase gate sees be made?",
        baseline="carve",
        tasks={"text": text},
        axes=[
            parts.axis(
                "content",
                parts.mixer("carve", "CARVE (L = 64, rank 16, raw)"),
                changed("none", "no content", content=False),
                *(changed(f"L{n}", f"L = {n}", gate_chunk=n) for n in (16, 32, 128, 256)),
                *(changed(f"rank{n}", f"rank {n}", content_rank=n) for n in (1, 4, 64)),
                changed("stop_gradient", "no gradient", stop_gradient_content=True),
                changed("normalised", "normalised", content_norm=True),
                changed(
                    "normalised_rank64", "normalised, rank 64", content_norm=True, content_rank=64
                ),
            )
        ],
        seeds=(0, 1, 2),
    )
