"""The longer search; see the package's docstring."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("CARVE_SELFTEST", "off")

from hypothesis.errors import Flaky

from tests.fuzz.bench import Bench, Hang
from tests.fuzz.kinds import KINDS
from tests.fuzz.search import search_for
from tests.fuzz.table import table


def main(argv: list[str]) -> int:
    """Searches, prints counts and faults, and returns the exit code: 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of all kinds together")
    parser.add_argument("--examples", type=int, default=1 << 40, help="of each kind")
    parser.add_argument("--only", default="", help="kinds whose names contain one of these")
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args(argv)
    if given.seconds == float("inf") and given.examples == 1 << 40:
        given.examples = 2000
    chosen = int.from_bytes(os.urandom(4), "big") if given.seed is None else given.seed
    kinds = [k for k in KINDS if any(part in k.name for part in given.only.split(","))]
    print(f"{len(kinds)} kinds, seed {chosen}", flush=True)
    counts, faults = {}, []
    begun = time.monotonic()
    for number, kind in enumerate(kinds):
        left = given.seconds - (time.monotonic() - begun)
        share = kind.share / sum(other.share for other in kinds[number:])
        with tempfile.TemporaryDirectory(prefix="carve_jax_fuzz_") as folder:
            bench = Bench(kind, Path(folder))
            try:
                search_for(bench, left * share, given.examples, chosen + number)
            except (AssertionError, Hang, Flaky) as error:
                faults.append(kind.name)
                print(f"\nFAULT {error}\n", flush=True)
        counts[kind.name] = dict(bench.counts)
    print(table(counts))
    print(f"{time.monotonic() - begun:.0f} s; faults in: {', '.join(faults) or 'none'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
