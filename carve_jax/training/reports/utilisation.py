"""Model FLOPs utilisation: the share of the devices' peak that the model's arithmetic takes."""

from collections.abc import Sequence

from carve_jax.accounting import forward_flops, train_flops
from carve_jax.config import LMConfig

PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("H800", 989e12),
    ("GH200", 989e12),
    ("GB200", 2.5e15),
    ("B200", 2.25e15),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
)
"""Floating-point operations per second of one device in dense bfloat16, from makers' datasheets.

The first name that is found in JAX's `device_kind`, as whole words, counts.
"""


def peak_flops(device_kind: str) -> float | None:
    """Datasheet peak of one device in bfloat16; None for one that is not in the table."""
    words = device_kind.replace("-", " ").split()
    for name, peak in PEAK_FLOPS:
        parts = name.split()
        starts = range(len(words) - len(parts) + 1)
        if any(words[i : i + len(parts)] == parts for i in starts):
            return peak
    return None


def ideal_step_seconds(
    config: LMConfig, tokens: int, context: int, device_kinds: Sequence[str]
) -> float | None:
    """Seconds of a train step whose model FLOPs ran at the peak; None for unknown devices.

    The model's FLOPs are those of `carve_jax.accounting`; what rematerialisation computes again
    does not count, and padding does.

    Args:
      config: of the model.
      tokens: positions of a batch, B·T.
      context: tokens of a row.
      device_kinds: of all the devices a step runs on.
    """
    peaks = [peak_flops(kind) for kind in device_kinds]
    known = [peak for peak in peaks if peak is not None]
    if not known or len(known) < len(peaks):
        return None
    return train_flops(forward_flops(config, context)) * tokens / sum(known)
