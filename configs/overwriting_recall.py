"""Recall with overwriting: each key is written twice, and its newest value is asked for.

Source: synthetic; 8 keys in a state of 8 × 8, so that an old value must go before a new one comes.
Command: python -m experiments.train --config=configs/overwriting_recall.py --workdir=runs/over
Duration: about half a minute of a core's time.
The figure to watch is eval_accuracy in metrics.jsonl; one of nine values is right by chance. GDN-2
(--config.model.pattern="('gdn2',)") ended at 0.73, one seed. With a peak of 1e-2 it ended at 0.41
and CARVE at 0.23.
"""

from ml_collections import ConfigDict

from configs import mqar


def get_config() -> ConfigDict:
    """One CARVE layer of width 64 and one head of 8 × 8; gate chunks of 8 tokens."""
    config = mqar.get_config()
    config.model.update(
        {
            "vocab_size": 18,
            "layers": 1,
            "mlp_dim": 128,
            "num_heads": 1,
            "key_dim": 8,
            "value_dim": 8,
            "gates": {"gate_chunk": 8},
            "implementation": "recurrent",  # of so small a state, faster on a CPU
        }
    )
    config.data = ConfigDict(
        {
            "source": "overwriting_recall",
            "vocab_size": 18,  # the filler, the same 8 keys in every row, 9 values
            "num_pairs": 8,
            "num_queries": 0,
            "num_writes": 2,
            "eval_examples": 512,
        }
    )
    config.batch_size = 32
    config.sequence_length = 40  # 16 writes, 8 queries
    config.steps = 1500
    config.eval_every = 250
    config.checkpoint_every = 750
    return config
