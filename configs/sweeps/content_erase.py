"""Content erase: a gate that sees memory against gates that do not, below and above the load.

The claim that it is to answer, with its criterion and what was expected, is written in
experiments/claims/content_signal.py. A gate that does not see memory keeps two rows of the state
for each key: two keys fit the four rows that GDN-2 and CARVE have (`below`), three do not
(`above`). `gdn2_6` has as many numbers as CARVE carries in all (4 × 4, its content of 4, and the
running sum of 4), `gdn2_8` more; `carve_norm` divides the content by its root mean square,
`carve_blind` has none. A seed has solved a task from 0.98 of the answers on.

The task is that of configs/content_erase.py in half as large batches: with 3 writes per key in
place of 5 a blind gate may tell the sums apart, and with 1,000 steps CARVE's later seeds do not
come to the end (2026-11-25: from step 225 to 825).

Duration: 216 runs, 72 of them of tuning. A run of the load above took 93 s of one of two busy
cores, start and compilation included (2026-11-28); all together should take some two hours of a
quiet core's time and up to four of a busy one's (reckoned, not measured).
Command: python -m experiments.sweep --config=configs/sweeps/content_erase.py --workdir=DIR --report
"""

from ml_collections import ConfigDict

from configs import content_erase
from configs.sweeps import parts

SOLVED = 0.98


def task(title: str, keys: int, length: int) -> ConfigDict:
    """So many keys, written five times each, in rows of that length."""
    config = content_erase.get_config()
    config.data.update({"num_pairs": keys, "vocab_size": 5 + keys, "eval_examples": 256})
    config.model.vocab_size = 5 + keys
    config.update({"sequence_length": length, "batch_size": 32})
    return parts.asked(title, config, solved=SOLVED)


def get_config() -> ConfigDict:
    """Six variants, two loads, twelve seeds, tuned."""
    normed = parts.mixer("carve", "CARVE, normalised content", gates={"content_norm": True})
    blind = parts.mixer("carve", "CARVE without content", gates={"content": False})
    wider = [
        {**parts.mixer("gdn2", f"GDN-2, {rows} × 4 state", key_dim=rows), "label": f"gdn2_{rows}"}
        for rows in (6, 8)
    ]
    return parts.sweep(
        "content_erase",
        "Does a gate that sees memory erase or keep as a distant mode says, and a blind one not?",
        baseline="gdn2",
        tasks={
            "above": task("content-dependent erase, load above the state", 3, 40),
            "below": task("content-dependent erase, load below the state", 2, 28),
        },
        axes=[
            parts.axis(
                "mixer",
                parts.mixer("gdn2", "GDN-2"),
                *wider,
                {**blind, "label": "carve_blind"},
                parts.mixer("carve", "CARVE"),
                {**normed, "label": "carve_norm"},
            )
        ],
        seeds=range(12),
        tune=parts.tune(3e-3, 1e-2, 3e-2, steps=1000),
    )
