"""Erasing on the key axis only keeps the WY solver valid."""

from experiments.claims.claim import Answer, Claim, Verdict
from experiments.claims.records import Records

SHAPE = {"experiments": [{"name": str, "numbers": [{"name": str, "value": float}]}]}
EXACT, WRONG = 1e-10, 1e-3


def judge(records: Records) -> Answer | None:
    """What the committed results say; None where there are none."""
    found = records.newest("*_theory/theory.json", SHAPE)
    if found is None:
        return None
    record, source = found
    solve = next((each for each in record["experiments"] if each["name"] == "solve"), None)
    if solve is None:
        return None
    value = {number["name"]: number["value"] for number in solve["numbers"]}
    key = value["error of one solve, key axis"]
    mask = value["error of the best one solve, value mask"]
    verdict = Verdict.HOLDS if key < EXACT and mask > WRONG else Verdict.FAILS
    return Answer(
        f"key axis: one solve is right to {key:.0e}; value axis: the best one is {mask:.1%} off",
        "random tiles of 64 tokens in float64 against the token-by-token rule; relative error",
        verdict,
        source,
    )


CLAIM = Claim(
    title="Erasing on the key axis alone keeps the WY solver valid",
    paper="An erase gate on the key axis keeps the chunkwise form with one triangular solve a "
    "chunk; one on the value axis does not.",
    test="`python -m experiments.theory --only=solve`: the chunk form with one solve against the "
    "recurrence, under erase gates on the key axis and under erase masks on the value axis.",
    criterion="Holds if one solve is right to 1e-10 under every key-axis gate tried, and no single "
    "solve comes nearer than 1e-3 under a value-axis mask (relative, float64). Else it does not.",
    judge=judge,
    note="The paper gives GDN-2 as the rule whose value-axis erase mask rules the WY form out. We "
    "could not confirm that premise, and say so with respect for the work: in GDN-2's own paper "
    "([arXiv 2605.22791](https://arxiv.org/abs/2605.22791), eq. 9 and 10) the erase gate "
    "multiplies the key, so it lies on the key axis; the gate on the value axis is the write "
    "gate, which leaves the triangular system as it is; and both the paper and its published code "
    "compute GDN-2 with a chunkwise WY algorithm. So the statement about the two axes holds, but "
    "it does not set CARVE apart from GDN-2. The baseline of all our comparisons is GDN-2 as "
    "published.",
)
