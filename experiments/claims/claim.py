"""What a claim is, and what may be said of it."""

import enum
from collections.abc import Callable
from typing import NamedTuple

from experiments.claims.records import Records

REGISTERED = "2026-11-28"
"""When the criteria were written; results of an earlier day were known by then."""


class Verdict(enum.Enum):
    """What a criterion makes of results."""

    HOLDS = "holds"
    LIMITS = "holds within limits"
    FAILS = "does not hold"
    OPEN = "not shown"
    NOT_YET = "not yet"


class Answer(NamedTuple):
    """What results say of a claim.

    Attributes:
      ours: our figure beside the paper's.
      how: how it was measured.
      verdict: what the criterion makes of it.
      source: the file of results, below experiments/results.
      but: what takes from its worth, such as "untuned".
    """

    ours: str
    how: str
    verdict: Verdict
    source: str
    but: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """The verdict with all that takes from its worth."""
        early = ("results older than the criterion",) if self.source[:10] < REGISTERED else ()
        doubts = "; ".join((*self.but, *early))
        return f"**{self.verdict.value}**" + (f" ({doubts})" if doubts else "")


class Claim(NamedTuple):
    """A claim of the paper.

    Attributes:
      title: in a few words.
      paper: what the paper says.
      test: what we do at our scale.
      criterion: by which we judge, as `judge` computes it.
      judge: makes the answer out of the committed results; None where there are none yet.
      note: what else a reader should know.
    """

    title: str
    paper: str
    test: str
    criterion: str
    judge: Callable[[Records], Answer | None]
    note: str = ""
