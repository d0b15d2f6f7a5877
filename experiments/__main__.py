"""The commands of carve_jax, from any folder.

  carve-jax COMMAND [flags]

`carve-jax train` is `python -m experiments.train`, and so are the others. A config such as
configs/quickstart.py is found in what is installed where the current folder has no such file.
"""

import ast
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NO_COMMANDS = ("__init__", "__main__", "cli", "compile_cache", "freed_memory")
USER_ERROR = 2


def commands() -> dict[str, Path]:
    """The file of each command, which is not imported: a list must not wait for JAX."""
    files = {path.stem: path for path in FOLDER.glob("*.py") if path.stem not in NO_COMMANDS}
    packages = {path.parent.name: path for path in FOLDER.glob("*/__main__.py")}
    return dict(sorted((files | packages).items()))


def page() -> str:
    """What this command does, and the first line of each of the others."""
    lines = [(__doc__ or "").strip(), "", "Commands (carve-jax COMMAND --help says more):"]
    for name, path in commands().items():
        told = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        lines.append(f"  {name:<14}{told.partition(chr(10))[0]}")
    return "\n".join(lines)


def main() -> int:
    """Runs the command that the first argument names, with the others; its exit code."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(page())
        return 0
    if name not in commands():
        from carve_jax.training.settings import nearest  # here, as it takes JAX along

        print(f"error: unknown command {name!r}; {nearest(name, commands())}", file=sys.stderr)
        return USER_ERROR
    sys.argv = [f"carve-jax {name}", *rest]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
