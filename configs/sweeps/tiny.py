"""Two mixers, two seeds, a few steps of a very small model: to see a sweep and its report work.

Command: python -m experiments.sweep --config=configs/sweeps/tiny.py --workdir=runs/tiny --report
Duration: 85 s of a core's time, with nothing compiled before.
Expected: nothing; so short a run tells no mixers apart.
"""

from ml_collections import ConfigDict

from configs.sweeps import parts

MODEL = {"d_model": 16, "layers": 1, "mlp_dim": 16, "num_heads": 1, "key_dim": 8, "value_dim": 8}


def get_config() -> ConfigDict:
    """Recall of two pairs among 20 tokens."""
    task = parts.recall(**MODEL, vocab_size=20, gates={"content_rank": 4})
    task.config.update(
        {"batch_size": 32, "steps": 40, "log_every": 10, "eval_every": 40, "checkpoint_every": 40}
    )
    task.config.update({"sequence_length": 16, "loss_chunk": 512})
    task.config.data.update({"vocab_size": 20, "num_pairs": 2, "eval_examples": 64})
    return parts.sweep(
        "tiny",
        "Does a sweep run?",
        baseline="gdn2",
        tasks={"recall": task},
        axes=[parts.axis("mixer", parts.mixer("gdn2", "GDN-2"), parts.mixer("carve", "CARVE"))],
        seeds=(0, 1),
    )
