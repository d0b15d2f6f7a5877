"""The nearest natural tasks to those that CARVE's gate was made for: recall, needles, states.

Associative recall of eight pairs, a needle in haystacks of mixed lengths, and products of
permutations of five things in two layers. Recall with overwriting, the fourth, is in
`gdn2_vs_carve`, and by size of the state in `state_size`.

Found (experiments/results/2026-11-28_natural_tasks): both mixers recall eight pairs (three seeds),
find 0.4 to 0.9 of the needles (three) and 0.04 of the permutations (five); no difference is shown.
Duration: 4 to 11 minutes per run of the first two, two at a time on two busy cores.
Command: python -m experiments.sweep --config=configs/sweeps/natural_tasks.py --workdir=DIR --report
"""

from ml_collections import ConfigDict

from configs import mqar, niah, state_tracking
from configs.sweeps import parts

SOLVED = 0.98


def recall() -> ConfigDict:
    """As in its own config, in batches of 32."""
    config = mqar.get_config()
    config.batch_size = 32
    return config


def needles() -> ConfigDict:
    """Rows of 256 bytes, whose haystacks begin at 64."""
    config = niah.get_config()
    config.data.shortest = 64
    config.update({"sequence_length": 256, "batch_size": 16, "steps": 1000})
    return config


def permutations() -> ConfigDict:
    """S5 in two layers, whose erase gates reach 2."""
    config = state_tracking.get_config()
    config.data.group = "s5"
    config.model.layers = 2
    config.update({"steps": 2000, "checkpoint_every": 1000})
    return config


def get_config() -> ConfigDict:
    """Two mixers, three tasks, five seeds, tuned in runs of a thousand steps."""
    return parts.sweep(
        "natural_tasks",
        "Does CARVE's gate help on recall, needles and states that were not made for it?",
        baseline="gdn2",
        tasks={
            "mqar": parts.asked("associative recall, 8 pairs of 64 tokens", recall(), SOLVED),
            "niah": parts.asked("a needle in haystacks of 64 to 256 bytes", needles(), SOLVED),
            "s5": parts.asked("products of 32 permutations of five", permutations(), SOLVED),
        },
        axes=[parts.axis("mixer", parts.mixer("gdn2", "GDN-2"), parts.mixer("carve", "CARVE"))],
        seeds=range(5),
        tune=parts.tune(1e-3, 3e-3, 1e-2, seeds=(1000,), steps=1000),
    )
