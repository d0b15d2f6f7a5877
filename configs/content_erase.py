"""Content erase."""

from ml_collections import ConfigDict

from configs import mqar


def get_config() -> ConfigDict:
    """One layer, one head."""
    config = mqar.get_config()
    config.model.update(
        {
            "vocab_size": 13,
            "layers": 1,
            "num_heads": 1,
            "key_dim": 8,
            "value_dim": 8,
            "mlp_dim": 128,
            "gate_chunk": 8,
            "chunk_size": 8,
        }
    )
    config.data = ConfigDict(
        {
            "source": "content_erase",
            "vocab_size": 13,
            "num_pairs": 8,
            "num_queries": 0,
            "num_writes": 5,
            "eval_examples": 512,
        }
    )
    config.batch_size = 32
    config.sequence_length = 96
    config.steps = 1000
    config.eval_every = 100
    config.log_every = 100
    config.checkpoint_every = 100000
    config.optimizer.peak_learning_rate = 1e-2
    return config
