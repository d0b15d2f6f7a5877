"""CARVE against GDN-2 on English text that is not read twice, one size up from `gdn2_vs_carve`.

The text is that of `package_docs`: 55 MB of documentation, of which a run sees about one percent.
Models are the quickstart's. The variants say where a difference comes from: the scalar write gate
alone, CARVE without content, CARVE. Expected, written before the runs: what `gdn2_vs_carve` showed,
a scalar write gate that costs about 0.01 bits per byte and content that is not seen to matter.

Found (experiments/results/2026-11-28_english_text): the write gate costs 0.015 (0.008 to 0.022),
CARVE as a whole 0.022 (0.004 to 0.041); content moves no gate.
Duration: 36 runs of 80 s each, two at a time on two cores of an AMD EPYC 9005.
Command:
  python -m experiments.prepare_data --input=package_docs --output=data/package_docs
  python -m experiments.sweep --config=configs/sweeps/english_text.py --workdir=DIR --report
"""

from ml_collections import ConfigDict

from configs import quickstart
from configs.sweeps import parts


def english() -> ConfigDict:
    """The quickstart's model on the token files of `package_docs`, as bytes."""
    config = quickstart.get_config()
    config.data.source, config.data.path = "token_files", "data/package_docs"
    config.steps = config.eval_every = config.checkpoint_every = 300
    config.log_every, config.sample_tokens = 10, 0
    return ConfigDict(
        {
            "title": "English: documentation of Python packages",
            "config": config,
            "metrics": (parts.BITS, parts.LOSS),
        }
    )


def get_config() -> ConfigDict:
    """Four variants, one task, six seeds, tuned."""
    blind = parts.mixer("carve", "CARVE without content", gates={"content": False})
    write = parts.mixer("gdn2", "GDN-2, scalar write", gates={"write": "scalar"})
    return parts.sweep(
        "english_text",
        "Does CARVE predict English better than GDN-2 when no text is seen twice?",
        baseline="gdn2",
        tasks={"english": english()},
        axes=[
            parts.axis(
                "mixer",
                parts.mixer("gdn2", "GDN-2"),
                parts.mixer("carve", "CARVE"),
                {**blind, "label": "carve_blind"},
                {**write, "label": "write_scalar"},
            )
        ],
        seeds=range(6),
        tune=parts.tune(1e-3, 3e-3, 1e-2, seeds=(1000,)),
    )
