"""Fair tuning: with which value of a field each variant of a task learns best, on seeds of its own.

Every value of a grid is tried with every seed, for each task and variant; the value with the best
mean of the task's first metric is the variant's own in the comparison. What was chosen, and from
which results, lies in DIR/tuning/TASK.VARIANT.json.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from carve_jax.errors import UserError
from carve_jax.files import Maybe, check_shape, made_directory, read_json, reason_of, write_new
from carve_jax.training.settings import check_names

FOLDER = "tuning"
SECTION = "optimizer."
"""What is tuned is a field of this section: sizes and tokens stay as equal as a sweep says."""
CHOICE = {
    "field": str,
    "value": float,
    "grid": [float],
    "seeds": [int],
    "steps": int,
    "results": [[Maybe(float)]],
}
"""What the file of a choice holds, as `check_shape` takes it."""


class Tuning(NamedTuple):
    """What a sweep tunes.

    Attributes:
      field: of a run's config, by dotted name.
      grid: the values tried.
      seeds: that every value is tried with; none of them is a seed of the comparison.
      steps: of each of these runs; 0 for as many as a run of the comparison takes.
    """

    field: str
    grid: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int


class Choice(NamedTuple):
    """What was chosen for a variant of a task.

    Attributes:
      value: one of the grid's.
      results: of each value of the grid, by seed; None of a run that diverged.
    """

    tuning: Tuning
    value: float
    results: tuple[tuple[float | None, ...], ...]

    @property
    def at_edge(self) -> bool:
        """Whether the best value may lie outside the grid."""
        return self.value in (min(self.tuning.grid), max(self.tuning.grid))

    @property
    def record(self) -> dict[str, Any]:
        """The tuning as JSON holds it."""
        return {**self.tuning._asdict(), "value": self.value, "results": self.results}

    @property
    def means(self) -> dict[float, float | None]:
        """Mean result by value; None where a run diverged."""
        return dict(zip(self.tuning.grid, map(_mean, self.results), strict=True))


def read_tuning(
    section: ConfigDict, seeds: Sequence[int], overridden: Mapping[str, Iterable[str]]
) -> Tuning | None:
    """The tuning that a sweep asks for; None if it asks for none.

    Args:
      section: `tune` of the sweep; see configs/sweeps/parts.py.
      seeds: of the comparison.
      overridden: by variant, the fields that it sets itself.

    Raises:
      UserError: it says something wrong.
    """
    if not section:
        return None
    check_names(section.keys(), Tuning._fields, "the sweep's tune")
    found = Tuning(section.field, tuple(section.grid), tuple(section.seeds), section.steps)
    if not found.field.startswith(SECTION):
        raise UserError(
            f"the sweep's tune.field is {found.field!r}: give one of the optimizer, as "
            f"{SECTION}peak_learning_rate"
        )
    numbers = all(type(value) in (int, float) and math.isfinite(value) for value in found.grid)
    if not numbers or len(set(found.grid)) < max(2, len(found.grid)):
        raise UserError(
            f"the sweep's tune.grid is {found.grid!r}: give different numbers, at least two"
        )
    if type(found.steps) is not int or found.steps < 0:
        raise UserError(f"the sweep's tune.steps is {found.steps!r}: give a whole number from 0")
    both = sorted(set(found.seeds) & set(seeds))
    if both:
        raise UserError(
            f"the sweep tunes with the seed {both[0]}, which is one of the comparison: give "
            "tune.seeds others"
        )
    setting = [name for name, fields in overridden.items() if found.field in fields]
    if setting:
        raise UserError(
            f"the sweep tunes {found.field}, which the variant {setting[0]!r} sets: let one of them"
        )
    return found


def choose(
    tuning: Tuning, results: Sequence[Sequence[float | None]], *, better: str
) -> Choice | None:
    """The value with the best mean; None if with each of them a run diverged.

    Of values that are equally good, it is the one nearest the middle of the grid.

    Args:
      results: of each value of the grid, by seed; None of a run that diverged.
      better: "lower" or "higher".
    """
    means = [_mean(each) for each in results]
    sign = -1.0 if better == "higher" else 1.0
    order = sorted(tuning.grid)
    middle = (len(order) - 1) / 2
    ranked = sorted(
        (sign * mean, abs(order.index(value) - middle), value)
        for value, mean in zip(tuning.grid, means, strict=True)
        if mean is not None
    )
    if not ranked:
        return None
    return Choice(tuning, ranked[0][2], tuple(map(tuple, results)))


def _mean(results: Sequence[float | None]) -> float | None:
    found = [each for each in results if each is not None and math.isfinite(each)]
    return statistics.fmean(found) if found and len(found) == len(results) else None


def choice_path(workdir: Path, task: str, variant: str) -> Path:
    """Where the choice for a variant of a task lies in a sweep's directory."""
    return workdir / FOLDER / f"{task}.{variant}.json"


def write_choice(workdir: Path, task: str, variant: str, choice: Choice) -> None:
    """Records a choice, once: the first one stays, whatever is run again later."""
    made_directory(workdir / FOLDER, "--workdir")
    write_new(choice_path(workdir, task, variant), json.dumps(choice.record, indent=2) + "\n")


def read_choice(workdir: Path, task: str, variant: str) -> Choice | None:
    """The recorded choice; None if there is none yet.

    Raises:
      UserError: the file does not read, or holds something else.
    """
    path = choice_path(workdir, task, variant)
    mend = "delete it to have the choice made again from the tuning's runs"
    try:
        found: dict[str, Any] = read_json(path, mend=mend)
    except FileNotFoundError:
        return None
    try:
        check_shape(found, CHOICE)
        return as_choice(found)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}): {mend}") from error


def as_choice(found: Mapping[str, Any]) -> Choice:
    """The choice of a record that has the shape of `CHOICE`.

    Raises:
      ValueError: its parts do not fit together.
    """
    grid, results = tuple(found["grid"]), tuple(map(tuple, found["results"]))
    if found["value"] not in grid:
        raise ValueError(f"its value {found['value']} is none of its grid")
    if [len(each) for each in results] != [len(found["seeds"])] * len(grid):
        raise ValueError("its results are not one for each value and seed")
    tuning = Tuning(found["field"], grid, tuple(found["seeds"]), found["steps"])
    return Choice(tuning, found["value"], results)
