"""Strict JAX under test: no silent rank promotion, two CPU devices, warnings are errors."""

import datetime
import gc
import os
import random
import time
from collections.abc import Iterator

from tests.devices import pool_threads, xla_flags

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(2)}"
if threads := pool_threads():
    os.environ.setdefault("NPROC", str(threads))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("CARVE_SELFTEST", "off")  # the suite compares kernels itself
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the network, or waits for it

import jax
import pytest

if jax.default_backend() != "gpu":
    os.environ.setdefault("CARVE_PALLAS", "interpret")

from tests.fuzz.table import pytest_terminal_summary  # noqa: F401  (a hook)

BEGUN = pytest.StashKey[float]()

jax.config.update("jax_numpy_rank_promotion", "raise")
# Traces make much that lives long, and collecting what is young does not pay.
gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def bounded_programs() -> Iterator[None]:
    """Forgets compiled programs after each file of tests.

    Each holds 3 to 33 mappings of memory, of which Linux allows a process 65,530; beyond them the
    compiler crashes.
    """
    yield
    jax.clear_caches()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--within=SECONDS`."""
    parser.addoption(
        "--within",
        type=float,
        metavar="SECONDS",
        help="begin no test later than this; which tests come first changes from day to day",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The clock of `--within`."""
    config.stash[BEGUN] = time.monotonic()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU, with the reason; let each day begin elsewhere."""
    if config.getoption("within") is not None:
        files = sorted({item.path for item in items})
        random.Random(datetime.date.today().toordinal()).shuffle(files)
        items.sort(key=lambda item: files.index(item.path))
    if jax.default_backend() == "gpu":
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """No test begins after the time that `--within` gives."""
    within = item.config.getoption("within")
    if within is not None and time.monotonic() - item.config.stash[BEGUN] > within:
        pytest.skip(f"left to another day: --within={within:g} seconds are over")
