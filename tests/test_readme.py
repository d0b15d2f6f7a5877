"""The README's words hold: its examples run, and CI runs the command it gives for the tests."""

import re

import pytest

from tests.markdown import ROOT, python_of, shell_of

README = ROOT / "README.md"


def test_it_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 200


def test_a_layer_in_a_network_runs() -> None:
    layer, _ = python_of(README)
    scope: dict = {}
    exec(layer, scope)
    assert scope["y"].shape == (2, 100, 32)


def test_the_ten_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    _, example = python_of(README)
    scope: dict = {}
    exec(example, scope)
    assert scope["logits"].shape == (1, 32, 257)
    assert capsys.readouterr().out.startswith("[[")


def test_ci_runs_the_command_for_the_tests() -> None:
    _, tests = shell_of(README)
    assert tests in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_where_we_lose_has_a_link_and_recorded_figures_in_each_point() -> None:
    _, _, rest = README.read_text("utf-8").partition("## Where we lose\n")
    points = rest.partition("\n## ")[0].strip().split("\n- ")
    assert len(points) >= 5
    for point in points:
        links = re.findall(r"\]\(((?:docs|experiments)/[^)#]*)#?([^)]*)\)", point)
        assert links, f"no record is linked: {point}"
        recorded = {x for path, anchor in links for x in figures_in(section(path, anchor))}
        prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", point)
        unknown = figures_in(prose) - recorded
        assert not unknown, f"no record has {sorted(unknown)}"


def section(path: str, anchor: str) -> str:
    """The text below a heading of a page, to the next of its rank; the whole page without one."""
    parts = re.split(r"^(#+) (.*)$", (ROOT / path).read_text("utf-8"), flags=re.MULTILINE)[1:]
    found, rank = "", 0
    for marks, title, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        if not anchor or slug == anchor:
            rank = rank or len(marks)
        elif len(marks) <= rank:
            rank = 0
        found += text if rank else ""
    return found


def figures_in(text: str) -> set[str]:
    """Numbers that are no part of a name such as H200 or GDN-2."""
    return set(re.findall(r"(?<![\w.-])\d+(?:[.,]\d+)*", text))


def test_the_checker_sees_a_figure() -> None:
    assert figures_in("GDN-2 took 1.39, and 2K x 36,300 on an H200") == {"1.39", "2", "36,300"}
