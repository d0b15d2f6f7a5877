"""The address of the repository is the one of pyproject.toml, wherever it stands."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.markdown import PAGES

ROOT = Path(__file__).parents[1]
NOTEBOOK = "experiments/notebooks/explore_carve.ipynb"
BADGE = re.compile(r"https://colab\.research\.google\.com/github/[^)\s\"]+")
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"][
    "Repository"
]
IN_COLAB = (
    f"https://colab.research.google.com/github/{ADDRESS.removeprefix('https://github.com/')}"
    f"/blob/main/{NOTEBOOK}"
)


def cells() -> list[str]:
    notebook = json.loads((ROOT / NOTEBOOK).read_text("utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"]]


def test_the_notebook_clones_it_and_opens_from_it() -> None:
    assert ADDRESS.startswith("https://github.com/")
    first, installs, *_ = cells()
    assert BADGE.findall(first) == [IN_COLAB]
    assert f'REPOSITORY = "{ADDRESS}"\n' in installs


def test_the_citation_names_it() -> None:
    lines = (ROOT / "CITATION.cff").read_text("utf-8").splitlines()
    assert f'repository-code: "{ADDRESS}"' in lines


@pytest.mark.parametrize("name", ["README.md", "docs/faq.md"])
def test_pages_open_the_notebook_of_it(name: str) -> None:
    assert ROOT / name in PAGES
    assert BADGE.findall((ROOT / name).read_text("utf-8")) == [IN_COLAB]
