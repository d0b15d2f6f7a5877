"""How much recall a number of the state buys: overwriting recall by the size of the state.

A report sets accuracy against the bytes that a decoder carries per sequence, CARVE's content and
its running sum included, so that CARVE pays for what it reads. Both mixers have one head whose key
and value channels grow together; nothing else changes. Eight keys are written twice each, so that
states of four rows are too small, and of eight just large enough.

Found (experiments/results/2026-11-28_state_size): both mixers lie on one line.
Duration: 64 runs of some 20 s each, two at a time on two cores of an AMD EPYC 9005.
Command: python -m experiments.sweep --config=configs/sweeps/state_size.py --workdir=DIR --report
"""

from ml_collections import ConfigDict

from configs.sweeps import parts

CHANNELS = (4, 6, 8, 12)


def get_config() -> ConfigDict:
    """Two mixers of four sizes, one task, eight seeds."""
    sizes = (
        parts.value(f"{n}x{n}", f"{n} × {n}", {"model.key_dim": n, "model.value_dim": n}, n)
        for n in CHANNELS
    )
    return parts.sweep(
        "state_size",
        "How much recall does each number of a state buy?",
        baseline="gdn2_8x8",
        tasks={"overwriting": parts.overwriting()},
        axes=[
            parts.axis("mixer", parts.mixer("gdn2", "GDN-2"), parts.mixer("carve", "CARVE")),
            parts.axis("channels", *sizes),
        ],
        seeds=range(8),
    )
