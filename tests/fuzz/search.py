"""Looks for a damage that a kind's readers do not take as they should."""

import random
import time

from hypothesis import HealthCheck, Phase, Verbosity, example, given, seed, settings

from tests.fuzz.bench import Bench, Hang
from tests.fuzz.damage import Example, examples

STEP = 40  # examples of one search, where there is time for several


def search(bench: Bench, count: int, *, chosen: int | None = None) -> None:
    """Tries a kind's kept examples, and so many others.

    Args:
      count: of other examples.
      chosen: seed of those; None: the same ones every time.

    Raises:
      AssertionError: for the smallest example found, which the message ends with.
      Hang: for one that takes too long.
    """
    kind = bench.kind
    strategy = examples(
        len(bench.files), json=kind.json, sealed=kind.reseal is not None, code=kind.code
    )

    def once(tried: Example) -> None:
        try:
            bench.outcome(tried)
        except (AssertionError, Hang) as error:
            raise type(error)(f"{error}\n{bench.named(tried)}\n{tried!r}") from None

    for kept in kind.examples:
        once = example(kept)(once)
    once = given(strategy)(once)
    if chosen is not None:
        once = seed(chosen)(once)
    settings(
        max_examples=count,
        derandomize=chosen is None,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )(once)()


def search_for(bench: Bench, seconds: float, count: int, chosen: int) -> int:
    """Searches until so many seconds or examples are over; returns the examples tried."""
    draw, end = random.Random(chosen), time.monotonic() + seconds
    while (done := sum(bench.counts.values())) < count and time.monotonic() < end:
        search(bench, min(STEP, count - done), chosen=draw.getrandbits(32))
    return sum(bench.counts.values())
