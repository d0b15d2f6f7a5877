"""A needle in a haystack (RULER's S-NIAH-1, arXiv 2404.06654): bytes to be said again.

Source: synthetic; "One of the special magic numbers for KEY is: 1234567." hidden in repeated noise,
in rows of 512 bytes, of which the question takes a third. The loss is on the reply alone.
Command: python -m experiments.train --config=configs/niah.py --workdir=runs/niah
The figure to watch is eval_accuracy in metrics.jsonl: two of nine bytes (the space before and the
end after) are always the same, so a model that finds nothing has 0.30.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Two CARVE layers of width 64."""
    config = base.get_config()
    config.model.update(
        {
            "d_model": 64,
            "layers": 2,
            "mlp_dim": 128,
            "num_heads": 2,
            "key_dim": 32,
            "value_dim": 32,
            "compute_dtype": "float32",
        }
    )
    config.data = ConfigDict({"source": "ruler", "probe": "niah_single_1", "eval_examples": 256})
    config.optimizer.peak_learning_rate = 3e-3
    config.batch_size = 16
    config.sequence_length = 512
    config.steps = 600
    config.loss_chunk = 8192
    config.eval_every = 100
    config.log_every = 20
    config.checkpoint_every = 300
    config.sample_tokens = 0
    return config
