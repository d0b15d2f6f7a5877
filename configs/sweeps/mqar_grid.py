"""Zoology's grid of associative recall: longer rows with more pairs (arXiv 2312.04927, figure 2).

Lengths, pairs, vocabulary and the law of the gaps are the paper's. It goes up to 64 times through
100,000 examples, at four learning rates and widths of 64 to 512; here 6.4 times as many examples
are all fresh, at one of each.

Command: python -m experiments.sweep --config=configs/sweeps/mqar_grid.py --workdir=DIR
One point of the grid: --only='recall_64_4.*'; another width: --set.model.d_model=128.
"""

from ml_collections import ConfigDict

from configs.sweeps import parts

GRID = ((64, 4), (128, 8), (256, 16), (512, 64))
"""Tokens of a row and its key-value pairs."""


def task(length: int, pairs: int) -> ConfigDict:
    """One point: a task of rows of so many tokens."""
    recall = parts.recall(vocab_size=8192, gates={"gate_chunk": 16})
    recall.title = f"{pairs} pairs in {length} tokens"
    recall.config.data.update({"vocab_size": 8192, "num_pairs": pairs, "eval_examples": 3000})
    recall.config.update({"sequence_length": length, "batch_size": 128, "steps": 5000})
    recall.config.update({"eval_every": 500, "checkpoint_every": 1000})
    return recall


def get_config() -> ConfigDict:
    """Two mixers, four tasks, three seeds."""
    return parts.sweep(
        "mqar_grid",
        "How many pairs does a state of one size look up as rows grow?",
        baseline="gdn2",
        tasks={f"recall_{length}_{pairs}": task(length, pairs) for length, pairs in GRID},
        axes=[parts.axis("mixer", parts.mixer("gdn2", "GDN-2"), parts.mixer("carve", "CARVE"))],
        seeds=(0, 1, 2),
    )
