"""The synthetic suites that a small model learns in minutes: recall, a needle, and state tracking.

Text and recall with overwriting are in `gdn2_vs_carve`, content-dependent erase in `content_erase`.

Found (experiments/results/2026-11-26_small_suites): no difference. The needle and parity are
learned by all, recall by two seeds of three, S3 by none: a cycle of three differs from the identity
by a matrix of rank two, and what one token erases is of rank one (arXiv 2502.10297).

Duration: 24 runs, 106 minutes of training, two at a time on two busy cores (2026-11-26).
Command: python -m experiments.sweep --config=configs/sweeps/small_suites.py --workdir=DIR --report
"""

from ml_collections import ConfigDict

from configs import mqar, niah, state_tracking
from configs.sweeps import parts


def recall() -> ConfigDict:
    """Four pairs in 32 tokens: with eight in 64, whether a seed learns within minutes is luck."""
    config = mqar.get_config()
    config.model.vocab_size = config.data.vocab_size = 64
    config.data.num_pairs = 4
    config.sequence_length = 32
    config.steps = 1500
    return config


def group(name: str) -> ConfigDict:
    """State tracking in this group."""
    config = state_tracking.get_config()
    config.data.group = name
    return config


def get_config() -> ConfigDict:
    """Two mixers, four tasks, three seeds."""
    return parts.sweep(
        "small_suites",
        "Do small models of both mixers recall, find a needle and track a state?",
        baseline="gdn2",
        tasks={
            "mqar": parts.asked("associative recall, 4 pairs in 32 tokens", recall()),
            "niah": parts.asked("a needle in a haystack of 64 bytes", niah.get_config()),
            "parity": parts.asked("parity of 32 bits", group("parity")),
            "s3": parts.asked("products of 32 permutations of three", group("s3")),
        },
        axes=[parts.axis("mixer", parts.mixer("gdn2", "GDN-2"), parts.mixer("carve", "CARVE"))],
        seeds=(0, 1, 2),
    )
