"""The record of the theory experiments and its pictures, as a report takes them in."""

from pathlib import Path
from typing import Any

from carve_jax.errors import UserError
from carve_jax.files import Maybe, inside, local_path, read_regular
from experiments.reporting.sweep import read_json

THEORY = "theory.json"
RECORD = {
    "commit": Maybe(str),
    "date": Maybe(str),
    "experiments": [
        {
            **dict.fromkeys(("title", "verdict", "claim", "setup"), str),
            "fails_where": Maybe(str),
            "figure": Maybe(object),  # see `theory_pictures`
            "numbers": Maybe([{"name": str, "value": float, "unit": Maybe(str)}]),
        }
    ],
}
"""What theory.json holds, as `check_shape` takes it."""
PNG = b"\x89PNG\r\n\x1a\n"


def find_theory(given: str | None, workdir: Path) -> tuple[dict[str, Any] | None, Path]:
    """The record of the theory experiments, if there is one, and where its pictures lie.

    Raises:
      UserError: a directory was named and has none.
    """
    directory = local_path(given, "--theory") if given else workdir / "theory"
    if not (directory / THEORY).exists():
        if given:
            raise UserError(
                f"--theory={given} has no {THEORY}: give a directory that experiments.theory wrote"
            )
        return None, directory
    return read_json(directory / THEORY, RECORD), directory


def theory_pictures(theory: dict[str, Any] | None, directory: Path) -> dict[str, bytes]:
    """The pictures of the theory experiments, by name.

    Raises:
      UserError: one that is not beside the record, or no PNG.
    """
    found = {}
    for each in theory["experiments"] if theory else []:
        if not each.get("figure"):
            continue
        path = inside(directory, each["figure"], directory / THEORY)
        try:
            content = read_regular(path)
        except FileNotFoundError:
            raise UserError(
                f"{directory / THEORY} shows {path.name}, which is not beside it: run "
                "experiments.theory again"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): run experiments.theory") from error
        if not content.startswith(PNG) or path.suffix != ".png":
            raise UserError(f"{path} is no PNG: run experiments.theory again")
        found[path.name] = content
    return found
