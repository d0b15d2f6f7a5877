"""Outputs already written are a content signal for the erase gate."""

import numpy as np

from carve_jax.evaluation import statistics
from experiments.claims.claim import Answer, Claim, Verdict
from experiments.claims.pairs import ALPHA, decides, doubts
from experiments.claims.records import Records
from experiments.reporting.solved import solved

TASK = "above"
OURS = "carve"
BLIND = ("gdn2", "carve_blind")  # the same state, and gates that do not see it
SEEDS = 12


def judge(records: Records) -> Answer | None:
    """What the committed results say; None where there are none."""
    found = records.sweep("content_erase", has=OURS)
    if found is None:
        return None
    sweep = found.sweep
    task = next((each for each in sweep.tasks if each.name == TASK), None)
    if task is None or task.metrics[0].solved is None or not set(BLIND) <= sweep.variants.keys():
        return None
    against = [solved(sweep, task, OURS, blind) for blind in BLIND]
    others = [solved(sweep, task, blind, OURS) for blind in BLIND]
    ours = against[0]
    if not ours.seeds or not all(each.seeds for each in others):
        return None
    corrected = statistics.holm(np.array([each.p for each in against]))
    shown = [
        each.wins > each.losses and p < ALPHA for each, p in zip(against, corrected, strict=True)
    ]
    mostly = 2 * ours.number > len(ours.seeds)
    never = not any(each.number for each in others)
    if all(shown):
        verdict = Verdict.HOLDS if mostly and never else Verdict.LIMITS
    else:
        behind = any(each.losses > each.wins and each.p < ALPHA for each in against)
        verdict = Verdict.FAILS if behind else Verdict.OPEN
    if not decides(found, len(ours.seeds), SEEDS):
        verdict = Verdict.OPEN
    counts = [
        f"{sweep.variants[each.variant]} {each.number} of {len(each.seeds)}"
        for each in (ours, *others)
    ]
    tests = [
        f"{p:.3g} against {sweep.variants[blind]}"
        for p, blind in zip(corrected, BLIND, strict=True)
    ]
    return Answer(
        f"seeds that solve it: {', '.join(counts)}",
        f"content-dependent erase, load above the state, solved from {task.metrics[0].solved:g} "
        f"accuracy on; exact test of pairs, corrected: p {', '.join(tests)}",
        verdict,
        found.source,
        doubts(found, TASK, (OURS, *BLIND), len(ours.seeds), SEEDS),
    )


CLAIM = Claim(
    title="Outputs already written are a content signal for the erase gate",
    paper="The outputs that the rule has produced tell the erase gate what the memory holds, at no "
    "extra cost. (The cost is a claim of its own, below.)",
    test="The sweep `content_erase`: a mode set long ago says whether a key written again replaces "
    "or accumulates, so that a gate that does not see memory must keep both answers, two rows of "
    "the state a key. One layer, one head. Six variants: GDN-2 with CARVE's memory (4 × 4), with "
    "as many numbers as CARVE carries in all, content and its running sum included (6 × 4), and "
    "with more (8 × 4); CARVE without content; CARVE; CARVE with normalised content. Two loads: "
    "two keys, whose answers fit four rows even twice, and three, which take six. Twelve paired "
    "seeds; the learning rate tuned for each variant and load on two seeds of their own.",
    criterion="At the load above the state (three keys), a seed counts as solving the task from "
    "0.98 of held-out answers on. Holds if CARVE solves it in more pairs of one seed than GDN-2 "
    "of the same memory, and than CARVE without content, each by the exact test of pairs (McNemar "
    "as a two-sided sign test) at 0.05 after Holm's correction for the two; if more than half of "
    "CARVE's seeds solve it; and if no seed of those two blind ones does. Within limits if the "
    "tests hold and the rest does not. It does not hold if a blind one solves it in significantly "
    "more pairs; else it is not shown. Beside it, and not for the verdict: accuracy paired by "
    "seed, steps to solve, the load below the state, GDN-2 of larger memory, and normalised "
    "content.",
    judge=judge,
    note="Expected, written before the runs: blind gates of four rows never solve the load above "
    "the state, CARVE mostly does, and all mostly solve the load below it. GDN-2 with six or eight "
    "rows has room for both answers and may solve it: then CARVE's content stands for state, "
    "rather than for something that no state can buy. Twelve seeds show it four times in five if "
    "CARVE solves two seeds of three and blind gates none. The run of 2026-11-25 had three seeds, "
    "no tuning and the load above alone. A limit, found since (`content_faint`, untuned, twice the "
    "batch): there CARVE without content solves the load above in one seed of five.",
)
