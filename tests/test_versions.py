"""Versions outside the tested ranges are said, once and for use alone."""

import importlib.resources
import re
from importlib import metadata
from pathlib import Path

import pytest

import carve_jax
from carve_jax import versions

PYPROJECT = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
BOUNDED = ("jax", "flax", "orbax-checkpoint", "grain", "lm-eval", "tokenizers")


@pytest.mark.parametrize("name", BOUNDED)
def test_unstable_interfaces_have_an_upper_bound(name):
    found = re.findall(rf'"{name}(?:\[[^\]]*\])?>=[^"]*"', PYPROJECT)
    assert found
    assert all(re.search(r",<[\d.]+", line) for line in found), found


def test_what_is_outside_a_range_is_said_on_one_line(monkeypatch, capsys):
    wanted = [
        "flax<0.13,>=0.12",
        "grain<0.3,>=0.2.14",
        'lm-eval<0.4.14,>=0.4.13; extra == "eval"',
        'triton==3.9.0; platform_system == "Linux" and extra == "dev"',
        'safetensors>=9; extra == "torch"',
        "not a requirement at all",
    ]
    installed = {"flax": "0.13.0rc1", "grain": "0.2.18", "lm-eval": "0.4.14", "triton": "3.8.0"}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "requires", lambda package: wanted)
    monkeypatch.setattr(metadata, "version", version)
    assert len(versions.untested()) == 2
    versions.warn_of_untested()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "flax 0.13.0rc1 (tested: <0.13,>=0.12)" in said
    assert "lm-eval 0.4.14 (tested: <0.4.14,>=0.4.13)" in said
    installed.update(flax="0.12.9")
    installed.pop("lm-eval")
    versions.warn_of_untested()
    assert capsys.readouterr().err == ""


def test_a_checkout_that_is_not_installed_says_nothing(monkeypatch):
    def absent(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "requires", absent)
    assert versions.untested() == []


def test_the_package_says_its_version():
    assert carve_jax.__version__ == metadata.version("carve_jax")
    for package in ("carve_jax", "pallas_kernels"):
        assert importlib.resources.files(package).joinpath("py.typed").is_file()
