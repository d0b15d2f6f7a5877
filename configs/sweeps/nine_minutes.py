"""CARVE against GDN-2 on one rented GPU, minutes at a time: small runs side by side on one card.

A sitting is stopped by SIGTERM, upon which the runs save, and the same command goes on with them in
the next one; what was compiled is found again in JAX_COMPILATION_CACHE_DIR, so keep that and DIR on
a disk that stays. The order is that of value: the learning rates first, without which a comparison
is worth little, then every variant of the first seed, of the second, and so on: a report can be
made of whatever seeds are there.

Command, each sitting:
  JAX_COMPILATION_CACHE_DIR=DIR/compiled timeout 540 python -m experiments.sweep \\
      --config=configs/sweeps/nine_minutes.py --workdir=DIR --jobs=4
Other data: --set.data.source=token_files --set.data.path=TOKENS. Not yet run on a GPU.
"""

from ml_collections import ConfigDict

from configs.sweeps import parts


def get_config() -> ConfigDict:
    """Three variants, one task, eight seeds, tuned: 33 runs of 3.3M tokens and fewer."""
    text = parts.text(
        d_model=256, layers=4, mlp_dim=688, num_heads=4, key_dim=64, value_dim=64,
        compute_dtype="bfloat16",
    )  # fmt: skip
    text.title = "text: Python's documentation"
    text.config.data.parts = ("topics", "docstrings")
    text.config.update({"sequence_length": 512, "batch_size": 32, "steps": 200})
    text.config.update({"eval_every": 200, "checkpoint_every": 100})
    carve = parts.mixer("carve", "CARVE")
    return parts.sweep(
        "nine_minutes",
        "Does CARVE predict text better than GDN-2 at a size that a GPU trains in a minute?",
        baseline="gdn2",
        tasks={"text": text},
        axes=[
            parts.axis(
                "mixer",
                parts.mixer("gdn2", "GDN-2"),
                carve,
                {**carve, "label": "carve_wide", "title": "CARVE, MLP widened to GDN-2's size"},
            )
        ],
        seeds=range(8),
        equal_parameters=["carve_wide"],
        tune=parts.tune(1e-3, 2e-3, 4e-3, seeds=(1000,)),
    )
