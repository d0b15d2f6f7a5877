"""Freed memory stays with a process of training, unless the user sets the allocator."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.freed_memory import keep_freed

ROOT = Path(__file__).parents[2]
# Faults of pages at the tenth time that 256 MB are taken, written to and freed.
FAULTS = """
import resource
from experiments.freed_memory import keep_freed
asked = {}
print(keep_freed() if asked else False)
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**28
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults(asked: bool) -> tuple[bool, int]:
    code = FAULTS.format(asked)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_the_kernel_clears_no_page_twice() -> None:
    kept, few = faults(asked=True)
    if not kept:
        pytest.skip("another C library, or an allocator that the environment sets")
    assert few < 1000 < faults(asked=False)[1]


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_an_allocator_that_the_environment_sets_stays_so(monkeypatch, name) -> None:
    monkeypatch.setenv(name, "1")
    assert not keep_freed()
