"""A whole train step of the 1.3B model on one GPU, as the GPU records have it."""

import re
from typing import Any, NamedTuple

from carve_jax.files import Maybe
from experiments.claims.records import Records

NAMES = ("carve", "gdn2")
STEP = Maybe({})
SHAPE = {
    **dict.fromkeys(("commit", "code", "device", "card"), Maybe(str)),
    "train_step": STEP,
    "summary": STEP,
}


class Step(NamedTuple):
    """Figures of CARVE and of GDN-2: tokens per second and peak bytes."""

    carve: tuple[float, float]
    gdn2: tuple[float, float]
    device: str
    commit: str
    source: str

    @property
    def card(self) -> str:
        """Which card, and when it was measured."""
        name = re.search(r"\b[A-Z]+\d{2,4}\b", self.device)
        return f"{name[0] if name else self.device}, {self.source[:10]}"


def newest_step(records: Records) -> Step | None:
    """The step of the newest record of an H100; None without a step of both mixers."""
    for record, source in records.every("*_h100*/*.json", SHAPE):
        part: Any = record.get("train_step") or (record.get("summary") or {}).get("train_step")
        mixers = (part or {}).get("mixers", part or {})
        if all("tokens_per_second" in mixers.get(name, {}) for name in NAMES):
            carve, gdn2 = (
                (float(mixers[name]["tokens_per_second"]), _bytes(mixers[name])) for name in NAMES
            )
            device = record.get("device") or record.get("card") or "an H100"
            commit = record.get("commit") or record.get("code") or "unknown"
            return Step(carve, gdn2, device, commit[:7], source)
    return None


def _bytes(figures: dict[str, Any]) -> float:
    return float(figures.get("peak_bytes") or 1e9 * figures["gigabytes"])
