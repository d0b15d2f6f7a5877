"""RULER's scores: which of the answers a reply holds, as substrings, whatever the case."""

import re
from collections.abc import Sequence

_UNPRINTABLE = re.compile(r"[\x00-\x1f]")


def score(reply: str, answers: Sequence[str], match: str = "all") -> float:
    """The score of one reply, from 0 to 1.

    Args:
      reply: what the model wrote. Control characters in it count as line ends.
      answers: at least one.
      match: "all": the share of the answers that are in the reply; "part": whether any is.
    """
    text = _UNPRINTABLE.sub("\n", reply).lower()
    found = [answer.lower() in text for answer in answers]
    return float(any(found)) if match == "part" else sum(found) / len(found)
