"""Strict JAX under test: no silent rank promotion, two CPU devices, warnings are errors."""

import datetime
import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.devices import xla_flags

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(2)}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("CARVE_SELFTEST", "off")  # the suite compares kernels itself

import jax
import pytest

if jax.default_backend() != "gpu":
    os.environ.setdefault("CARVE_PALLAS", "interpret")

from tests.fuzz.table import pytest_terminal_summary  # noqa: F401  (a hook)

BEGUN = pytest.StashKey[float]()

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def bounded_programs() -> Iterator[None]:
    """Forgets compiled programs after each file of tests.

    Each holds 3 to 33 mappings of memory, of which Linux allows a process 65,530; beyond them the
    compiler crashes.
    """
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def one_program_a_config() -> Iterator[None]:
    """Runs of one config and one device in a file of tests are traced and compiled once."""
    run = sys.modules.get("carve_jax.training.run")
    if run is None:
        yield
        return
    known: dict[Any, Any] = {}
    build_steps = run.build_steps

    def remembered(config: Any, model: Any, mesh: Any) -> Any:
        if mesh is not None:
            return build_steps(config, model, mesh)
        read = ("optimizer", "steps", "seed", "loss_chunk", "z_loss", "guard", "log_norms_every")
        key = repr(([(name, config[name]) for name in read], model.config))
        if key not in known:
            known[key] = build_steps(config, model, mesh)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_steps", remembered)
        yield


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
