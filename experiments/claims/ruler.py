"""Better than GDN-2 on every RULER probe."""

import numpy as np

from carve_jax.evaluation import statistics
from carve_jax.files import Each
from experiments.claims.claim import Answer, Claim, Verdict
from experiments.claims.pairs import ALPHA
from experiments.claims.records import Records

SHAPE = {"results": Each(Each(Each({"value": float})))}


def judge(records: Records) -> Answer | None:
    """What the committed results say; None where there are none."""
    found = records.newest("**/needles.json", SHAPE)
    if found is None or not {"carve", "gdn2"} <= found[0]["results"].keys():
        return None
    models, source = found[0]["results"], found[1]
    seeds = sorted(models["carve"].keys() & models["gdn2"].keys())
    if len(seeds) < 2:
        return None
    of_seeds = [set(models[m][seed]) for m in ("carve", "gdn2") for seed in seeds]
    probes = sorted(set.intersection(*of_seeds), key=lambda name: (len(name), name))
    differences = np.array(
        [
            [models["carve"][s][p]["value"] - models["gdn2"][s][p]["value"] for s in seeds]
            for p in probes
        ]
    )
    means = differences.mean(1)
    corrected = statistics.holm(statistics.paired(differences, ALPHA).p)
    if (means > 0).all():
        verdict = Verdict.HOLDS
    else:
        verdict = Verdict.FAILS if ((means < 0) & (corrected < ALPHA)).any() else Verdict.OPEN
    told = [f"{mean:+.2f}".replace("-", "−") for mean in means]
    return Answer(
        f"CARVE minus GDN-2, share answered: {', '.join(told)}",
        f"means over {len(seeds)} seeds; {', '.join(probes)} (bytes of haystack)",
        verdict,
        source,
        ("untuned",),
    )


CLAIM = Claim(
    title="Better than GDN-2 on every RULER probe",
    paper="CARVE is ahead of GDN-2 on every RULER probe (1.3B, 100B tokens).",
    test="A needle in haystacks of the length trained on, and of two, four and eight times that, "
    "with two layers of width 64 (the task `niah` of the sweep `small_suites`).",
    criterion="Holds if CARVE's mean over seeds is above GDN-2's for every probe and length "
    "measured. Does not hold if GDN-2's is above CARVE's for one of them by the paired t test at "
    "0.05, corrected by Holm; else it is not shown.",
    judge=judge,
    note="One probe at a size that learns it in minutes is a small part of RULER: the claim is "
    "about 1.3B parameters.",
)
