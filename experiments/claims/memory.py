"""CARVE trains with 13% less peak memory than GDN-2."""

from experiments.claims.claim import Answer, Claim, Verdict
from experiments.claims.records import Records
from experiments.claims.training_step import newest_step

RATIO = {"ratio": float}
SHAPE = {"bytes": {"rule pallas": RATIO, "layer pallas": RATIO}}
ENOUGH = 0.10


def judge(records: Records) -> Answer | None:
    """What the committed results say; None where there are none."""
    step, planned = newest_step(records), records.newest("*_memory.json", SHAPE)
    if step is None:
        return None
    saved = 1 - step.carve[1] / step.gdn2[1]
    verdict = Verdict.LIMITS if saved > 0 else Verdict.FAILS
    how = f"train step of the 1.3B model, {step.device}, remat: "
    how += f"{step.carve[1] / 1e9:.1f} and {step.gdn2[1] / 1e9:.1f} GB"
    if planned is not None:
        rule, layer = (planned[0]["bytes"][part]["ratio"] for part in SHAPE["bytes"])
        how += f"; planned by the compiler ({planned[1][:10]}): the rule alone {rule:.2f} of "
        how += f"GDN-2's, a layer {layer:.2f}"
    verdict = Verdict.HOLDS if saved >= ENOUGH else verdict
    return Answer(f"{saved:.0%} less ({step.card})", how, verdict, step.source)


CLAIM = Claim(
    title="13% less peak memory",
    paper="Peak training memory 13% below GDN-2's.",
    test="The peak of a whole train step of `carve_1b3` and of `gdn2_1b3` on one GPU; beside it "
    "what the compiler plans for the rule and for a layer (`python -m experiments.memory`).",
    criterion="Holds if the measured step takes at least 10% less, within limits if it takes "
    "less, else it does not hold.",
    judge=judge,
    note="An H200, measured on 2026-11-28 with newer kernels "
    "([figures](../results/2026-11-28_h200/figures.json)): 7% less on 4 and on 8 rows of 4,096 "
    "tokens; the rule alone, forward and backward on 8 rows, 13% less.",
)
