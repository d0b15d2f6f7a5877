"""How the user's shell finds a program that is installed beside this Python."""

import os
import shlex
import shutil
import sys
from pathlib import Path

CARVE_JAX = "carve-jax"


def program(name: str) -> str | None:
    """The name if the shell finds the program beside this Python, or one where there is none
    beside it; else its path; None where there is no such program.

    A virtual environment that is not active is the usual reason for a path.
    """
    own = Path(sys.executable or name).with_name(name)
    found = shutil.which(name)
    if not own.exists():
        return shlex.quote(name) if found else None
    return _spelled(own)


def _spelled(own: Path) -> str:
    found = shutil.which(own.name)
    if found and Path(found).absolute() == own:
        return shlex.quote(own.name)
    inside = own.is_relative_to(Path.cwd()) and own.parent != Path.cwd()
    return shlex.quote(os.path.relpath(own) if inside else str(own))


def command(name: str) -> str:
    """A command of this project, called in the way that the one which runs was."""
    if sys.argv[0].startswith(CARVE_JAX):
        return f"{program(CARVE_JAX) or CARVE_JAX} {name}"
    own = Path(sys.executable)
    plain = own.with_name("python")
    python = _spelled(plain if plain.exists() else own) if sys.executable else "python"
    return f"{python} -m experiments.{name}"
