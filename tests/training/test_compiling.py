"""Programs of a run on CPUs are compiled in haste, unless the user says otherwise."""

import jax
import pytest
from jax.sharding import Mesh

from carve_jax.training.compiling import EMITTERS, LEVEL, compiler_options


@pytest.fixture(autouse=True)
def no_flags(monkeypatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")


CPUS = Mesh(jax.devices("cpu")[:1], "data")


class Device:
    platform = "gpu"


def test_cpus_take_the_lower_level() -> None:
    assert compiler_options(CPUS)[LEVEL] == 1


def test_other_devices_keep_xla_s_own() -> None:
    assert compiler_options(Mesh([Device()], "data")) is None


@pytest.mark.parametrize(("flag", "left"), [(LEVEL, None), (EMITTERS, {LEVEL: 1})])
def test_what_the_user_s_flags_name_stays(monkeypatch, flag, left) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"--{flag}=0")
    assert compiler_options(CPUS) == left
