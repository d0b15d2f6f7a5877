"""Content erase: a mode set long ago says whether a key written again replaces or accumulates.

Source: synthetic, with the proof of what a memory-blind gate cannot do in
carve_jax/data/synthetic/content_erase.py; 3 keys, 5 writes of each, a state of 4 × 4:
a row for each key and one for the mode, where both answers to all keys would take six.
Command: python -m experiments.train --config=configs/content_erase.py --workdir=runs/content_erase
The figure to watch is eval_accuracy in metrics.jsonl: 1/2 is chance, 3/4 is what knowing one mode's
answers gives in both. Some seeds solve it, others stay below 0.85: configs/sweeps/content_erase.py.
Duration: about a minute of a core's time.
"""

from ml_collections import ConfigDict

from configs import mqar


def get_config() -> ConfigDict:
    """One CARVE layer of width 32 and one head of 4 × 4; gate chunks of 4 tokens."""
    config = mqar.get_config()
    config.model.update(
        {
            "vocab_size": 8,
            "d_model": 32,
            "layers": 1,  # a second layer is not memory-blind: it sees what the first has read
            "mlp_dim": 64,
            "num_heads": 1,
            "key_dim": 4,
            "value_dim": 4,
            "gates": {"gate_chunk": 4},
            "implementation": "recurrent",  # of so small a state, four times as fast on a CPU
        }
    )
    config.data = ConfigDict(
        {
            "source": "content_erase",
            "vocab_size": 8,  # filler, modes and values are 5 of them: the same keys in every row
            "num_pairs": 3,
            "num_queries": 0,
            "num_writes": 5,
            "eval_examples": 512,
        }
    )
    config.optimizer.peak_learning_rate = 1e-2
    config.batch_size = 64
    config.sequence_length = 40  # mode, 6 of filler, 15 writes, 3 queries
    config.steps = 1500
    config.eval_every = 75
    config.log_every = 75
    config.checkpoint_every = 750
    return config
