"""How the user's shell finds a program that is installed beside this Python."""

import os
import shlex
import shutil
import sys
from pathlib import Path

CARVE_JAX = "carve-jax"


def program(name: str) -> str | None:
    """The name if the shell finds that very program, else its path; None where there is none.

    A virtual environment that is not active is the usual reason for a path.
    """
    own = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not own.exists():
        return shlex.quote(name) if found else None
    if found and Path(found).absolute() == own:
        return shlex.quote(name)
    inside = own.is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(own) if inside else str(own))


def command(name: str) -> str:
    """A command of this project, called in the way that the one which runs was."""
    if sys.argv[0].startswith(CARVE_JAX):
        return f"{program(CARVE_JAX) or CARVE_JAX} {name}"
    return f"{program('python') or shlex.quote(sys.executable)} -m experiments.{name}"
