"""What an experiment hands back: a claim, the checks it stands or falls by, and figures."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from matplotlib.figure import Figure

HOLDS, LIMITED, FAILS = "holds", "holds within limits", "fails"


class Check(NamedTuple):
    """One measured number and the bounds that the claim puts on it.

    Attributes:
      what: the number, in words.
      value: as measured; one that is not finite meets no bound.
      at_least, at_most: the bounds, themselves allowed.
      edge: the bound lies beyond the claim's own ground (it says how far the claim carries), so
        that missing it limits the claim and does not refute it.
    """

    what: str
    value: float
    at_least: float = -math.inf
    at_most: float = math.inf
    edge: bool = False

    @property
    def met(self) -> bool:
        """Whether the number keeps its bounds."""
        return math.isfinite(self.value) and self.at_least <= self.value <= self.at_most

    def __str__(self) -> str:
        """The number and its bounds."""
        bounds = [
            f"{words} {bound:g}"
            for words, bound in (("at least", self.at_least), ("at most", self.at_most))
            if math.isfinite(bound)
        ]
        return f"{self.what}: {self.value:.4g}, claimed {' and '.join(bounds)}"


class Number(NamedTuple):
    """A figure for the report."""

    name: str
    value: float
    unit: str = ""


class Finding(NamedTuple):
    """The outcome of one experiment.

    Attributes:
      title: the claim in a line.
      found: what was found, in a line.
      claim: precise enough to be false.
      setup: sizes and seeds.
      checks: what the verdict is computed from.
      numbers: what else was measured.
      curves: arrays for the figure.
    """

    title: str
    found: str
    claim: str
    setup: str
    checks: tuple[Check, ...]
    numbers: tuple[Number, ...]
    curves: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """`HOLDS` if every check is met, `LIMITED` if all but edges are, else `FAILS`."""
        missed = [check for check in self.checks if not check.met]
        if not missed:
            return HOLDS
        return LIMITED if all(check.edge for check in missed) else FAILS

    def judged(self, quick: bool) -> str:
        """The verdict in words; quick sizes, being too small to, refute nothing."""
        if not quick:
            return self.verdict
        return f"{'undecided' if self.verdict == FAILS else self.verdict}, quick sizes"

    @property
    def fails_where(self) -> str:
        """The checks that are not met; "" if all are."""
        return "; ".join(str(check) for check in self.checks if not check.met)

    def record(self, name: str, figure: str, seconds: float, quick: bool = False) -> dict[str, Any]:
        """The finding as plain values, as `theory.json` has it."""
        return {
            "name": name,
            "title": self.title,
            "found": self.found,
            "claim": self.claim,
            "setup": self.setup,
            "verdict": self.judged(quick),
            "fails_where": self.fails_where,
            "checks": [
                {
                    "what": str(check),
                    "value": float(check.value),
                    "edge": check.edge,
                    "met": bool(check.met),
                }
                for check in self.checks
            ],
            "numbers": [
                {**number._asdict(), "value": float(number.value)} for number in self.numbers
            ],
            "figure": figure,
            "seconds": round(seconds, 2),
        }


class Experiment(NamedTuple):
    """One function that measures (told whether to be quick) and one that draws."""

    measure: Callable[[bool], Finding]
    draw: Callable[[Figure, Finding], None]
