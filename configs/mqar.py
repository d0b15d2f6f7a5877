"""Multi-query associative recall (Zoology, arXiv 2312.04927): what a fixed-size state can look up.

Source: synthetic; 8 key-value pairs in 64 tokens, all of them asked for.
Command: python -m experiments.train --config=configs/mqar.py --workdir=runs/mqar
Duration: about half an hour of a core's time.
The figure to watch is eval_accuracy in metrics.jsonl. A model stays at 1/8, chance among the values
of a row, until it has found out how to look up. GDN-2 was at 0.87 at step 750, but with a schedule
of 1,500 steps still at 0.14 at its end, and CARVE at 0.97 (one seed each).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Two CARVE layers of width 64; gate chunks of 16 tokens, so that each example has several."""
    config = base.get_config()
    config.model.update(
        {
            "vocab_size": 256,
            "d_model": 64,
            "layers": 2,
            "mlp_dim": 176,
            "num_heads": 2,
            "key_dim": 32,
            "value_dim": 32,
            "gates": {"gate_chunk": 16},
            "chunk_size": 16,
            "compute_dtype": "float32",
        }
    )
    config.data = ConfigDict(
        {
            "source": "mqar",
            "vocab_size": 256,  # keys from its first half, values from its second
            "num_pairs": 8,
            "num_queries": 0,  # 0: every key is asked for
            "power_a": 0.01,  # law of the gaps between pair and query; small favours short ones
            "eval_examples": 1024,
        }
    )
    config.optimizer.peak_learning_rate = 3e-3
    config.batch_size = 64
    config.sequence_length = 64
    config.steps = 4000
    config.loss_chunk = 4096
    config.eval_every = 250
    config.log_every = 25
    config.checkpoint_every = 500
    config.sample_tokens = 0
    return config
