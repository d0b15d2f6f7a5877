"""The docs' words hold: links lead somewhere, code runs, commands know their flags."""

import argparse
import ast
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from carve_jax.errors import UserError
from configs import base
from experiments import cli
from tests.markdown import NAMES, PAGES, ROOT, anchors_of, code_of, links_of, python_of

DOCS = [page for page in PAGES if page.parent != ROOT]
COMMAND = re.compile(r"python -m ([\w.]+)(.*)")
FLAG = re.compile(r"(?<![\w-])--([\w.]+)")
WITH_FLAGS = ("experiments", "pallas_kernels", "tests")  # others are named, or not ours
OF_OTHERS = {"help", "within", "model", "model_args"}  # flags of all, of pytest and of lm_eval


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), f"{link} is no https address"
            continue
        path, _, anchor = unquote(link).partition("#")
        found = page if not path else (page.parent / path).resolve()
        assert found.is_relative_to(ROOT), f"{link} leads out of the project"
        assert found.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors_of(found), f"{link}: no such heading"


def test_a_page_is_linked_from_the_index() -> None:
    linked = {(ROOT / "docs" / link).resolve() for link in links_of(ROOT / "docs" / "index.md")}
    assert {page for page in DOCS if page.name != "index.md"} <= linked


@functools.cache
def scope_of(page: Path) -> dict:
    """What the Python of a page leaves, its blocks run one after the other."""
    scope: dict = {"__name__": page.stem}
    for block in python_of(page):
        exec(block, scope)
    return scope


@pytest.mark.parametrize("page", [page for page in DOCS if python_of(page)], ids=lambda p: p.stem)
def test_python_runs(page: Path) -> None:
    scope_of(page)


def test_what_the_python_says_of_itself_holds() -> None:
    rule = scope_of(ROOT / "docs" / "ops.md")
    np.testing.assert_allclose(rule["last"], rule["state"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rule["second"], rule["output"][:, 16:], rtol=1e-5, atol=1e-6)
    assert scope_of(ROOT / "docs" / "mixers.md")["second"].shape == (2, 16, 16)
    model = scope_of(ROOT / "docs" / "models.md")
    assert model["count_parameters"](model["shapes"])["mixer"] == 447_089_184


class Asked(BaseException):
    """A command was about to parse its flags."""


@functools.cache
def flags_of(module: str) -> frozenset[str]:
    """The flags that a command knows."""

    def stop(flags, *rest):
        del rest
        found = getattr(flags, "_option_string_actions", None)
        raise Asked([name.lstrip("-") for name in (flags if found is None else found)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "parse_flags", stop)
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        package = importlib.util.find_spec(module)
        assert package is not None, f"there is no {module}"
        name = f"{module}.__main__" if package.submodule_search_locations else module
        with pytest.raises(Asked) as asked:
            importlib.import_module(name).main([module])
    return frozenset(asked.value.args[0])


def commands_of(page: Path) -> Iterator[tuple[str, str]]:
    """The modules that a page runs, with what stands behind them."""
    for code in code_of(page):
        for module, rest in COMMAND.findall(code):
            if module.split(".")[0] in WITH_FLAGS:
                yield module.rstrip("."), rest.split("#")[0]
            else:
                assert importlib.util.find_spec(module.rstrip(".")) or module == "sphinx", module


def check_flag(name: str, known: frozenset[str]) -> None:
    if not name.startswith(("config.", "set.")):
        assert name in known or name.removeprefix("no") in known, f"--{name} is no flag"
    elif name.split(".")[-1] != "KEY":
        cli.check_field(base.get_config(), name.split(".", 1)[1])


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_know_their_flags(page: Path) -> None:
    for module, rest in commands_of(page):
        known = flags_of(module)
        for name in FLAG.findall(rest):
            check_flag(name, known)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_flags_that_are_named_alone_are_some_command_s(page: Path) -> None:
    modules = {module for each in PAGES for module, _ in commands_of(each)}
    known = frozenset(OF_OTHERS).union(*map(flags_of, sorted(modules)))
    for code in code_of(page):
        if code.startswith("--"):
            for name in FLAG.findall(code):
                check_flag(name, known)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_configs_that_are_named_exist(page: Path) -> None:
    for code in code_of(page):
        for path in re.findall(r"configs/[\w/]+\.py", code):
            assert (ROOT / path).exists(), path


def test_the_checker_sees_a_flag_that_is_not_there() -> None:
    assert {"config", "workdir", "describe", "peer_timeout"} <= flags_of("experiments.train")
    assert "quick" in flags_of("pallas_kernels.selftest")
    assert "only" in flags_of("experiments.theory")
    with pytest.raises(AssertionError, match="--describ is no flag"):
        check_flag("describ", flags_of("experiments.train"))
    with pytest.raises(UserError, match="no field"):
        check_flag("config.model.gates.gate_chunks", frozenset())


def sentences(source: str) -> Iterator[str]:
    """The texts of a file, with … for what they are filled in with."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            yield "".join(map(str, parts))


def test_the_sentences_that_troubleshooting_explains_are_in_the_code() -> None:
    rooms = ("carve_jax", "pallas_kernels", "experiments")
    files = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    said = "\n".join(text for path in files for text in sentences(path.read_text("utf-8")))
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    explained = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert len(explained) > 30
    for sentence in explained:
        pattern = re.escape(sentence).replace("…", "[^\n]*")
        assert re.search(pattern, said), f"no code says {sentence!r}"
