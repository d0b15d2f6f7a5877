"""The headline: CARVE against GDN-2, in the same shape and at the same parameters.

CARVE's scalar write gate saves parameters; `carve_wide` gives them back as a wider MLP, so that
quality is compared at the same size, and `carve` at the same shape. `write_scalar` has that gate
alone. The third of CARVE's changes, erasing on the key axis alone, has no variant: the value-axis
erase is an op and no mixer's option. What it is to answer is in experiments/claims/text_quality.py
and scalar_write.py.

Command: python -m experiments.sweep --config=configs/sweeps/gdn2_vs_carve.py --workdir=DIR
Found (experiments/results/2026-11-28_gdn2_vs_carve): on text the scalar write gate costs 0.011 bits
per byte (0.008 to 0.015), CARVE as a whole 0.016 (0.004 to 0.029); overwriting tells nothing apart.
Duration: 80 runs and 48 of tuning, two at a time on two cores that had some other work: 50 minutes
on an AMD EPYC 9005, 2.5 hours on an older one.
At scale: run I of `--count` on each node or array job,
  python -m experiments.sweep --config=configs/sweeps/gdn2_vs_carve.py --workdir=DIR --index=I
      --base=configs/carve_1b3.py --set.data.path=TOKENS --set.mesh.fsdp=8
"""

from ml_collections import ConfigDict

from configs.sweeps import parts


def get_config() -> ConfigDict:
    """Four variants, two tasks, ten seeds, tuned."""
    carve = parts.mixer("carve", "CARVE")
    return parts.sweep(
        "gdn2_vs_carve",
        "Does a content-aware erase gate with a scalar write gate learn better than GDN-2?",
        baseline="gdn2",
        tasks={"text": parts.text(), "overwriting": parts.overwriting()},
        axes=[
            parts.axis(
                "mixer",
                parts.mixer("gdn2", "GDN-2"),
                carve,
                {**carve, "label": "carve_wide", "title": "CARVE, MLP widened to GDN-2's size"},
                {
                    **parts.mixer("gdn2", "GDN-2, scalar write", gates={"write": "scalar"}),
                    "label": "write_scalar",
                },
            )
        ],
        seeds=range(10),
        equal_parameters=["carve_wide"],
        tune=parts.tune(1e-3, 3e-3, 1e-2),
    )
