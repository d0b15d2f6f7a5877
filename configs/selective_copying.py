"""Selective copying (Mamba, arXiv 2312.00752): keep the data, skip the noise, say it in order.

Source: synthetic; 6 tokens of 8 kinds amid 36 of noise.
Command: python -m experiments.train --config=configs/selective_copying.py --workdir=runs/copying
Duration: under two minutes of a core's time, measured beside other work.
The figure to watch is eval_accuracy in metrics.jsonl: 0.97 at step 600, one seed; 1/8 by chance.
"""

from ml_collections import ConfigDict

from configs import mqar


def get_config() -> ConfigDict:
    """Two CARVE layers of width 32; rows of 48 tokens."""
    config = mqar.get_config()
    config.model.update(
        {
            "vocab_size": 10,
            "d_model": 32,
            "mlp_dim": 64,
            "key_dim": 16,
            "value_dim": 16,
            "gates": {"gate_chunk": 16},
            "chunk_size": 16,
        }
    )
    config.data = ConfigDict(
        {
            "source": "selective_copying",
            "vocab_size": 10,  # noise, marker, 8 kinds of data
            "num_queries": 6,  # tokens to copy
            "eval_examples": 256,
        }
    )
    config.optimizer.peak_learning_rate = 1e-2
    config.batch_size = 32
    config.sequence_length = 48
    config.steps = 600
    config.eval_every = 200
    config.log_every = 50
    config.checkpoint_every = 600
    return config
