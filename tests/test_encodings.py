"""Text is UTF-8 wherever it is read or written, whatever the machine's locale."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    str(path.relative_to(ROOT))
    for room in ("carve_jax", "configs", "experiments", "examples", "pallas_kernels")
    for path in (ROOT / room).rglob("*.py")
)


def faults(source: str) -> list[str]:
    """Calls that read or write text in the locale's encoding; ruff's PLW1514 sees the plainest."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {k.arg: k.value for k in node.keywords}
        places = [ast.unparse(a) for a in node.args] + [
            ast.unparse(v) for k, v in given.items() if k == "mode"
        ]
        if "encoding" in given or None in given:
            continue
        given_first = {"read_text": 1, "write_text": 2}.get(name.split(".")[-1])
        if given_first is not None and len(node.args) < given_first:
            found.append(ast.unparse(node))
        elif name == "open" or (name.endswith(".open") and name != "os.open"):
            modes = [p for p in places if p.strip("'\"") and set(p.strip("'\"")) <= set("rwaxbt+")]
            if not any("b" in mode for mode in modes):
                found.append(ast.unparse(node))
        elif name.startswith("subprocess.") and ("text" in given or "universal_newlines" in given):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", FILES)
def test_every_text_has_an_encoding(path):
    assert faults((ROOT / path).read_text(encoding="utf-8")) == []


def test_the_checker_sees_what_has_none():
    bad = (
        "p.read_text()\np.write_text(x)\nopen(p)\np.open('a', buffering=1)\n"
        "subprocess.run(c, text=True)\n"
    )
    assert len(faults(bad)) == 5
    good = (
        "p.read_text('utf-8')\np.write_text(x, encoding='utf-8')\nopen(p, 'rb')\n"
        "p.open(mode='ab')\nos.open(p, 0)\nsubprocess.run(c, encoding='utf-8')\n"
    )
    assert faults(good) == []


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
def test_commands_write_utf_8_whatever_the_locale(encoding):
    program = (
        "import sys\n"
        "from experiments import cli\n"
        "sys.argv = ['x']\n"
        "def main(argv): print('caf\\xe9 \\u6f22'); raise cli.UserError('\\u6f22')\n"
        "cli.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.decode("utf-8") == "caf\xe9 \u6f22\n"
    assert done.stderr.decode("utf-8") == "error: \u6f22\n"
