"""The committed results that claims are judged by: the newest of each kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from carve_jax.files import Shape
from experiments.reporting import results
from experiments.reporting.sweep import Sweep, read_json

FOLDER = Path(__file__).parents[1] / "results"


class Found(NamedTuple):
    """A sweep's results, the name of their file below experiments/results, and its note."""

    sweep: Sweep
    source: str
    note: str


class Records:
    """A folder of dated results.

    Args:
      folder: experiments/results, or another one under test.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder

    def newest(self, pattern: str, shape: Shape) -> tuple[dict[str, Any], str] | None:
        """The newest JSON file of that pattern, and its name; None if there is none.

        Raises:
          UserError: it does not read, or is of another shape.
        """
        return next(self.every(pattern, shape), None)

    def every(self, pattern: str, shape: Shape) -> Iterator[tuple[dict[str, Any], str]]:
        """All JSON files of that pattern with their names, the newest first."""
        for path in sorted(self._folder.glob(pattern), reverse=True):
            yield read_json(path, shape), str(path.relative_to(self._folder))

    def sweep(self, *names: str, has: str = "") -> Found | None:
        """The newest results of a sweep of one of these names; None if there are none.

        Args:
          *names: of sweeps.
          has: a variant that it must have.
        """
        for path in sorted(self._folder.glob("*/results.json"), reverse=True):
            sweep, note = results.read_results(path)
            if sweep.record["name"] in names and (not has or has in sweep.variants):
                return Found(sweep, str(path.relative_to(self._folder)), note)
        return None
