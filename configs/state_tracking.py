"""State tracking: the parity of the ones so far, or the product of the permutations so far.

Source: synthetic; erase gates that reach 2, without which parity is out of reach in theory
(arXiv 2411.12537).
Command: python -m experiments.train --config=configs/state_tracking.py --workdir=runs/parity
Duration: about half a minute of a core's time.
The figure to watch is eval_accuracy in metrics.jsonl: 1.00 at steps 200 to 600, one seed, at the 32
tokens trained on; 0.73 with --config.model.gates.negative_eigenvalues=False. At 512 tokens the
first has 0.59, so it has learned a length and no state:
  python -m experiments.evaluate --workdir=runs/parity --config.sequence_length=512
"""

from ml_collections import ConfigDict

from configs import mqar


def get_config() -> ConfigDict:
    """One CARVE layer of width 32 whose erase gate reaches 2; rows of 32 tokens."""
    config = mqar.get_config()
    config.model.update(
        {
            "vocab_size": 120,  # S5; the smaller groups use the first of them
            "d_model": 32,
            "layers": 1,
            "mlp_dim": 64,
            "num_heads": 2,
            "key_dim": 8,
            "value_dim": 8,
            "implementation": "recurrent",  # of so small a state, faster on a CPU
            "chunk_size": 16,
            "gates": {"gate_chunk": 16, "negative_eigenvalues": True},
        }
    )
    config.data = ConfigDict(
        {
            "source": "state_tracking",
            "group": "parity",  # parity | s3 | s5
            "eval_examples": 256,
        }
    )
    config.optimizer.peak_learning_rate = 1e-2
    config.batch_size = 32
    config.sequence_length = 32
    config.steps = 600
    config.eval_every = 200
    config.log_every = 50
    config.checkpoint_every = 600
    return config
