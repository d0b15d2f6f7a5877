"""Best recurrent model on nine common-sense tasks."""

import math
import statistics

from carve_jax.files import Each
from experiments.claims.claim import Answer, Claim, Verdict
from experiments.claims.records import Records

SHAPE = {"results": Each(Each({"value": float, "stderr": float}))}
TASKS = 9
SURE = 1.96


def judge(records: Records) -> Answer | None:
    """What the committed results say; None where there are none."""
    found = records.newest("*common_sense*.json", SHAPE)
    if found is None:
        return None
    record, source = found
    models = record["results"]
    tasks = sorted(set.intersection(*(set(of_model) for of_model in models.values())))
    if "carve" not in models or len(models) < 2 or len(tasks) < TASKS:
        return None
    means = {m: statistics.fmean(models[m][t]["value"] for t in tasks) for m in models}
    error = {m: math.hypot(*(models[m][t]["stderr"] for t in tasks)) / len(tasks) for m in models}
    best = max((m for m in models if m != "carve"), key=means.__getitem__)
    difference = means["carve"] - means[best]
    sure = abs(difference) > SURE * math.hypot(error["carve"], error[best])
    verdict = Verdict.OPEN
    if sure:
        verdict = Verdict.HOLDS if difference > 0 else Verdict.FAILS
    return Answer(
        f"CARVE {means['carve']:.1%}, next recurrent {means[best]:.1%}",
        f"mean of {len(tasks)} tasks; the error of a mean is that of its examples, one seed",
        verdict,
        source,
    )


CLAIM = Claim(
    title="Best recurrent model on nine common-sense tasks",
    paper="The best mean of the recurrent models on nine common-sense tasks (1.3B, 100B tokens).",
    test="`python -m experiments.evaluate` with the harness's tasks on checkpoints of CARVE and of "
    "the other recurrent presets, trained alike. It needs a training run that tells such tasks "
    "from chance, about 100M parameters and several billion tokens: none has been made.",
    criterion="From a file DATE_common_sense.json in experiments/results, with value and standard "
    "error by model and task: holds if CARVE's mean over at least nine tasks is above that of "
    "every other recurrent model by 1.96 standard errors of the difference to the next one, does "
    "not hold if it is as far below, else it is not shown.",
    judge=judge,
)
