"""The notebook runs from top to bottom, defines nothing, and carries the pictures of a real run."""

import ast
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
PATH = ROOT / "experiments" / "notebooks" / "explore_carve.ipynb"
MOST_BYTES = 1_500_000
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def read():
    notebook = nbformat.read(PATH, as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(cells):
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


def test_it_calls_the_library_and_defines_nothing():
    _, cells = read()
    source = "\n".join(TransformerManager().transform_cell(cell.source) for cell in cells)
    defined = [node for node in ast.walk(ast.parse(source)) if isinstance(node, DEFINITIONS)]
    assert not defined, [ast.unparse(node) for node in defined]


def test_its_outputs_are_those_of_one_clean_run():
    _, cells = read()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {(o.output_type, o.get("name")) for cell in cells for o in cell.outputs}
    assert kinds <= {("stream", "stdout"), ("execute_result", None), ("display_data", None)}
    assert pictures(cells) >= 7
    assert PATH.stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_it_runs(monkeypatch, tmp_path):
    """With four steps of training in place of hundreds; every cell, and every picture anew."""
    monkeypatch.setenv("CARVE_NOTEBOOK_STEPS", "4")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook, cells = read()
    drawn = pictures(cells)
    for cell in cells:
        cell.outputs = []
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert pictures(cells) == drawn
