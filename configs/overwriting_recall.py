"""Recall with overwriting."""

from ml_collections import ConfigDict

from configs import mqar


def get_config() -> ConfigDict:
    """One layer."""
    config = mqar.get_config()
    config.model.update(
        {
            "vocab_size": 64,
            "layers": 1,
            "num_heads": 1,
            "key_dim": 16,
            "value_dim": 16,
            "mlp_dim": 128,
            "gate_chunk": 16,
        }
    )
    config.data = ConfigDict(
        {
            "source": "overwriting_recall",
            "vocab_size": 64,
            "num_pairs": 16,
            "num_queries": 0,
            "num_writes": 3,
            "eval_examples": 512,
        }
    )
    config.batch_size = 64
    config.sequence_length = 112
    config.steps = 600
    config.eval_every = 100
    config.checkpoint_every = 100000
    return config
