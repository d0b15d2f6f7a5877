"""The claims and what became of them, as a page of Markdown."""

from typing import Any

from carve_jax.files import Maybe
from experiments.claims import (
    common_sense,
    content_signal,
    key_axis,
    memory,
    parameters,
    ruler,
    scalar_write,
    text_quality,
    throughput,
)
from experiments.claims.claim import REGISTERED, Answer, Claim, Verdict
from experiments.claims.records import FOLDER, Records
from experiments.reporting import words

CLAIMS = (
    key_axis.CLAIM,
    content_signal.CLAIM,
    scalar_write.CLAIM,
    text_quality.CLAIM,
    common_sense.CLAIM,
    ruler.CLAIM,
    throughput.CLAIM,
    memory.CLAIM,
    parameters.CLAIM,
)
PAGE = FOLDER.parent / "claims" / "README.md"
THEORY = {"experiments": [{"title": str, "verdict": str, "fails_where": Maybe(str)}]}
HEAD = f"""# The paper's claims, and what we found

CARVE's paper is [arXiv 2606.27229](https://arxiv.org/abs/2606.27229). Below is each of its claims
with a test at our scale and a criterion. The criteria were written on {REGISTERED}, before the runs
that are to answer them; a result of an earlier day says so in its verdict. Verdicts are computed
from the results in [experiments/results](../results/LOG.md), and this page is made by
`python -m experiments.report --claims`: nobody edits it by hand, and a test compares the two.

“Holds within limits” is said of a claim of which a part holds, or less than the paper says; “not
shown” where the results do not tell, which is not to say that it is wrong; “not yet” where there
are none. Sweeps that were not tuned, or of fewer seeds than the criterion asks for, decide nothing:
their figures stand here with “not shown”. Verdicts are about our scale and our code: none of them
is about the paper's own runs."""


def render(records: Records) -> str:
    """The whole page.

    Raises:
      UserError: a file of results does not read.
    """
    answers = [(claim, claim.judge(records)) for claim in CLAIMS]
    rows = [
        [
            f"[{words.escape(claim.title)}](#{_slug(claim.title)})",
            words.escape(claim.paper),
            "–" if answer is None else words.escape(answer.ours),
            "–" if answer is None else words.escape(answer.how),
            _verdict(answer),
        ]
        for claim, answer in answers
    ]
    header = ["claim", "paper", "ours", "how measured", "verdict"]
    parts = [HEAD, words.table(header, rows, left=5), *_theory(records)]
    for claim, answer in answers:
        parts += _section(claim, answer)
    return "\n\n".join(parts) + "\n"


def summary(records: Records) -> str:
    """The table of the README: claim, what we found, verdict."""
    rows = []
    for claim in CLAIMS:
        answer = claim.judge(records)
        link = f"experiments/claims/README.md#{_slug(claim.title)}"
        ours = "–" if answer is None else words.escape(answer.ours)
        rows.append([f"[{words.escape(claim.title)}]({link})", ours, _verdict(answer)])
    return words.table(["claim of the paper", "ours", "verdict"], rows, left=3)


def _verdict(answer: Answer | None) -> str:
    return f"**{Verdict.NOT_YET.value}**" if answer is None else answer.told


def _section(claim: Claim, answer: Answer | None) -> list[str]:
    found = "No result yet."
    if answer is not None:
        link = f"[{answer.source}](../results/{answer.source})"
        how = words.escape(answer.how)
        found = f"{words.escape(answer.ours)}. {how[:1].upper()}{how[1:]}. From {link}."
    parts = [
        f"## {claim.title}",
        words.bullets(
            [
                f"**The paper:** {claim.paper}",
                f"**Our test:** {claim.test}",
                f"**Criterion:** {claim.criterion}",
                f"**Found:** {found}",
                f"**Verdict:** {_verdict(answer)}",
            ]
        ),
    ]
    return [*parts, claim.note] if claim.note else parts


def _theory(records: Records) -> list[str]:
    """What the experiments on the paper's theorems say."""
    found: tuple[dict[str, Any], str] | None = records.newest("*_theory/theory.json", THEORY)
    if found is None:
        return []
    rows = [
        [
            words.escape(each["title"]),
            f"**{words.escape(each['verdict'])}**",
            words.escape(each.get("fails_where") or "–"),
        ]
        for each in found[0]["experiments"]
    ]
    return [
        "## Theorems",
        "What the paper's theorems promise, tested in small exact settings by "
        f"`python -m experiments.theory` ([{found[1]}](../results/{found[1]})).",
        words.table(["claim", "verdict", "where it fails"], rows, left=3),
    ]


def _slug(title: str) -> str:
    """The name that GitHub gives a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
