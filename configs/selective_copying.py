"""Selective copying."""

from ml_collections import ConfigDict

from configs import mqar


def get_config() -> ConfigDict:
    """Two CARVE layers."""
    config = mqar.get_config()
    config.model.update(
        {
            "vocab_size": 10,
            "d_model": 32,
            "mlp_dim": 64,
            "key_dim": 16,
            "value_dim": 16,
            "gate_chunk": 16,
            "chunk_size": 16,
        }
    )
    config.data = ConfigDict(
        {
            "source": "selective_copying",
            "vocab_size": 10,
            "num_queries": 6,
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
