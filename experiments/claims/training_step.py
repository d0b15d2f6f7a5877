"""A whole train step of the 1.3B model on one GPU, as the GPU records have it."""

from typing import Any, NamedTuple

from carve_jax.files import Maybe
from experiments.claims.records import Records

SHAPE = {"commit": Maybe(str), "train_step": Maybe(object), "summary": Maybe(object)}


class Step(NamedTuple):
    """Figures of CARVE and of GDN-2: tokens a second and peak bytes."""

    carve: tuple[float, float]
    gdn2: tuple[float, float]
    device: str
    commit: str
    source: str


def newest_step(records: Records) -> Step | None:
    """Of the newest record of an H100; None without a step of both mixers."""
    found = records.newest("*_h100/figures.json", SHAPE)
    if found is None:
        return None
    record, source = found
    part: Any = record.get("train_step") or (record.get("summary") or {}).get("train_step") or {}
    mixers = part.get("mixers", part)
    if not all("tokens_per_second" in mixers.get(name, {}) for name in ("carve", "gdn2")):
        return None
    carve, gdn2 = (
        (float(mixers[name]["tokens_per_second"]), _bytes(mixers[name]))
        for name in ("carve", "gdn2")
    )
    device, commit = str(record.get("device") or "an H100"), str(record.get("commit") or "unknown")
    return Step(carve, gdn2, device, commit[:7], source)


def _bytes(figures: dict[str, Any]) -> float:
    return float(figures.get("peak_bytes") or 1e9 * figures["gigabytes"])
