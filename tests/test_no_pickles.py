"""No file of a run can run code: nothing here reads pickles, or what may hold some."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "sqlitedict"}
FILES = sorted(
    str(path.relative_to(ROOT))
    for room in ("carve_jax", "experiments", "pallas_kernels")
    for path in (ROOT / room).rglob("*.py")
)


def faults(source: str) -> list[str]:
    """Imports and calls that read pickles or run text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if str(node.module).split(".")[0] in MODULES else []
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in ("eval", "exec"):
                found.append(name)
            elif name.endswith((".load", "read_pickle")) and name.split(".")[0] in (
                *("np", "numpy", "jnp", "torch", "yaml", "pd"),
            ):
                if keywords.get("allow_pickle") != "False" and "weights_only" not in keywords:
                    found.append(name)
            elif keywords.get("use_cache", "None") != "None" and "evaluate" in name:
                found.append(f"{name}(use_cache=…)")
            elif keywords.get("allow_pickle") == "True":
                found.append(f"{name}(allow_pickle=True)")
    return found


@pytest.mark.parametrize("path", FILES)
def test_nothing_reads_pickles(path):
    assert faults((ROOT / path).read_text(encoding="utf-8")) == []


def test_the_checker_sees_them():
    bad = (
        "import pickle\nfrom dill import load\nnp.load(x)\neval(x)\n"
        "simple_evaluate(use_cache=str(p))\nnp.savez(x, allow_pickle=True)\n"
    )
    assert len(faults(bad)) == 6
    assert (
        faults("np.load(x, allow_pickle=False)\njson.load(x)\nsimple_evaluate(use_cache=None)\n")
        == []
    )
