"""Functions and classes stay small enough to be read at once."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("carve_jax", "pallas_kernels", "experiments", "configs", "examples", "tests")
MOST = {ast.FunctionDef: 60, ast.AsyncFunctionDef: 60, ast.ClassDef: 200}  # lines of code
UNCOUNTED = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def too_long(source: str) -> Iterator[str]:
    """Names of functions and classes with more lines of code than they may have.

    Comments, docstrings and empty lines are none.
    """
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in UNCOUNTED:
            code.update(range(token.start[0], token.end[0] + 1))
    nodes = [node for node in ast.walk(ast.parse(source)) if type(node) in MOST]
    for node in nodes:
        if ast.get_docstring(node, clean=False) is not None:
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for node in nodes:
        lines = sum(node.lineno <= line <= node.end_lineno for line in code)
        if lines > MOST[type(node)]:
            yield f"{node.name} ({lines})"


@pytest.mark.parametrize("room", ROOMS)
def test_functions_and_classes_are_short(room):
    files = sorted((ROOT / room).rglob("*.py"))
    found = {str(path.relative_to(ROOT)): list(too_long(path.read_text("utf-8"))) for path in files}
    assert files
    assert {path: names for path, names in found.items() if names} == {}


def test_a_long_function_is_found():
    lines = [f"    x = {line}" for line in range(60)]
    head = ["def f():", '    """One.', "", '    Two."""', "", "    # Three."]
    assert list(too_long("\n".join([*head, *lines]) + "\n")) == ["f (61)"]
    assert list(too_long("\n".join([*head, *lines[1:]]) + "\n")) == []
