"""One scalar write gate per head instead of a projection loses nothing."""

from experiments.claims.claim import Answer, Claim
from experiments.claims.pairs import judge_pairs
from experiments.claims.records import Records

SEEDS, MARGIN = 10, 0.01


def judge(records: Records) -> Answer | None:
    """What the committed results say; None where there are none."""
    found = records.sweep("gdn2_vs_carve", "gates", has="write_scalar")
    if found is None:
        return None
    return judge_pairs(found, "text", "write_scalar", "gdn2", seeds=SEEDS, margin=MARGIN)


CLAIM = Claim(
    title="One scalar write gate per head loses nothing",
    paper="A scalar write gate per head in place of GDN-2's projection to every value channel "
    "saves parameters and loses no quality.",
    test="GDN-2 with a scalar write gate, all else the same, against GDN-2 on text (the sweep "
    "`gdn2_vs_carve`, tuned, ten paired seeds).",
    criterion="Holds if the 95% interval of the paired difference in held-out bits per byte ends "
    "below +0.01 (a loss under 0.01 is taken for none). Does not hold if the interval ends above "
    "that and lies above zero as a whole; else it is not shown.",
    judge=judge,
)
