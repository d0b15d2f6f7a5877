"""The headline: CARVE against GDN-2, in the same shape and at the same parameters.

CARVE's scalar write gate saves parameters; `carve_wide` gives them back as a wider MLP, so that
quality is compared at the same size, and `carve` at the same shape. The third of CARVE's changes,
erasing on the key axis alone, has no variant: the value-axis erase is an op and no mixer's option.

Command: python -m experiments.sweep --config=configs/sweeps/gdn2_vs_carve.py --workdir=DIR
Duration: 30 runs, 36 minutes of training, two at a time on two busy cores (2026-11-25).
At scale: run I of `--count` on each node or array job,
  python -m experiments.sweep --config=configs/sweeps/gdn2_vs_carve.py --workdir=DIR --index=I
      --base=configs/carve_1b3.py --set.data.path=TOKENS --set.mesh.fsdp=8
"""

from ml_collections import ConfigDict

from configs.sweeps import parts


def get_config() -> ConfigDict:
    """Three variants, two tasks, five seeds."""
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
            )
        ],
        equal_parameters=["carve_wide"],
    )
