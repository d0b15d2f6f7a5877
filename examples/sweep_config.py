"""A sweep of one's own: does CARVE's content gate need its scalar write gate?

A sweep is tasks × variants × seeds. Here one small task, recall of two pairs, is trained with
GDN-2, with CARVE, and with CARVE whose write gate is per channel, as GDN-2's is. Fields of
`model.gates` and `model.layer` make such variants; `configs/sweeps/` has larger sweeps.

Command: python -m experiments.sweep --config=examples/sweep_config.py --workdir=runs/mine --report
Run time: about two minutes of a CPU core. So short a run tells no mixers apart.
"""

from ml_collections import ConfigDict

from configs.sweeps import parts

MODEL = {"d_model": 16, "layers": 1, "mlp_dim": 16, "num_heads": 1, "key_dim": 8, "value_dim": 8}


def get_config() -> ConfigDict:
    """The sweep: what it asks, its baseline, task, variants and seeds."""
    task = parts.recall(**MODEL, vocab_size=20)
    task.config.update({"batch_size": 32, "sequence_length": 16, "loss_chunk": 512, "steps": 40})
    task.config.update({"log_every": 10, "eval_every": 40, "checkpoint_every": 40})
    task.config.data.update({"vocab_size": 20, "num_pairs": 2, "eval_examples": 64})
    return parts.sweep(
        "write_gate",
        "Does the content gate need a scalar write gate?",
        baseline="gdn2",
        tasks={"recall": task},
        axes=[
            parts.axis(
                "mixer",
                parts.mixer("gdn2", "GDN-2"),
                parts.mixer("carve", "CARVE"),
                parts.value(
                    "carve_channel",
                    "CARVE, write gate per channel",
                    {"model.pattern": ("carve",), "model.gates.write": "channel"},
                ),
            )
        ],
        seeds=(0, 1),
    )
