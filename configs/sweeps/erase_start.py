"""Where the erase gate starts: half open, as published, or nearly shut or open.

In `content_faint`, of three seeds on text, CARVE's gates that started at σ(2) ended 0.018, 0.002
and 0.018 bits per byte lower, and those from σ(−2) 0.020, 0.023 and 0.029 higher, more than louder
content did. Is that so of GDN-2 as well, on text that is not read twice? A learned
bias comes with a start, so that one at σ(0) is here too. Expected, written before the runs: of both
mixers σ(2) lower by 0.01 and, of GDN-2, σ(−2) higher by 0.02, σ(0) as without a bias.

Found (experiments/results/2026-11-28_erase_start): of GDN-2, σ(−2) +0.024 (0.015 to 0.033), σ(0)
0.000, σ(2) −0.004 (−0.008 to 0.000): nearly shut is worse, nearly open not shown to be better.
Duration: 36 runs of 100 s each, two at a time on two busy cores.
Command:
  python -m experiments.prepare_data --input=package_docs --output=data/package_docs
  python -m experiments.sweep --config=configs/sweeps/erase_start.py --workdir=DIR --report
"""

from ml_collections import ConfigDict

from configs.sweeps import english_text, parts


def get_config() -> ConfigDict:
    """Six variants, one task, six seeds, at the rate that `english_text` chose for all of its."""

    def started(mixer: str, title: str, bias: float) -> dict[str, object]:
        made = parts.mixer(mixer, f"{title}, erase from σ({bias:g})", gates={"erase_bias": bias})
        label = f"{mixer}_{'m' if bias < 0 else ''}{abs(bias):g}"
        return {**made, "label": label, "value": label}

    return parts.sweep(
        "erase_start",
        "Does an erase gate that starts open predict English better?",
        baseline="gdn2",
        tasks={"english": english_text.english()},
        axes=[
            parts.axis(
                "start",
                parts.mixer("gdn2", "GDN-2"),
                *(started("gdn2", "GDN-2", bias) for bias in (-2.0, 0.0, 2.0)),
                parts.mixer("carve", "CARVE"),
                started("carve", "CARVE", 2.0),
            )
        ],
        seeds=range(6),
    )
