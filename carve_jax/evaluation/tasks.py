"""What a task is: a function of a trained model that gives figures with their standard errors."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from carve_jax.errors import UserError
from carve_jax.evaluation.evaluated_model import EvaluatedModel


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured number.

    Attributes:
      value: the number.
      stderr: its standard error; None where it has none.
      count: of what it was measured on: documents, rows, questions.
    """

    value: float
    stderr: float | None
    count: int


class Result(NamedTuple):
    """What a task measured.

    Attributes:
      metrics: by name.
      facts: plain values that JSON can hold: sizes, sources, versions.
    """

    metrics: dict[str, Figure]
    facts: dict[str, Any]


class Options(NamedTuple):
    """What a task may be told.

    Attributes:
      limit: most examples; None for all.
      num_fewshot: examples in a prompt; None for what the task says.
      input_tokens: most tokens of a prompt to be continued; None for what the task says.
      include_path: directories with the harness's YAML tasks, which may run code.
      seed: of what is drawn.
      keep: file in which a task may keep what it has done, to go on after a stop (`Answers`).
    """

    limit: int | None = None
    num_fewshot: int | None = None
    input_tokens: int | None = None
    include_path: tuple[str, ...] = ()
    seed: int = 0
    keep: Path | None = None


Task = Callable[[EvaluatedModel, Options], Result]


class Source(Protocol):
    """Tasks of one kind."""

    def groups(self) -> Mapping[str, Mapping[str, str]]:
        """Names that stand for several tasks: which, and the metric of each that is averaged."""
        ...

    def find(self, name: str) -> Task | None:
        """The task of that name, if it is one of these; may raise UserError for one that is not
        well-formed."""
        ...

    def names(self) -> Iterable[str]:
        """Names to offer for one that nobody knows."""
        ...


class NamedTasks(NamedTuple):
    """A source that is a table."""

    table: Mapping[str, Task]

    def groups(self) -> Mapping[str, Mapping[str, str]]:
        """No groups: a table has none."""
        return {}

    def find(self, name: str) -> Task | None:
        """The task of that name."""
        return self.table.get(name)

    def names(self) -> Iterable[str]:
        """All names."""
        return self.table


def find_tasks(names: Sequence[str], sources: Sequence[Source]) -> dict[str, Task]:
    """The tasks of the names, each group replaced by its members.

    Raises:
      UserError: a name that no source knows; the nearest are offered.
    """
    wanted = [member for name in names for member in find_group(name, sources) or (name,)]
    found: dict[str, Task] = {}
    for name in dict.fromkeys(wanted):
        found[name] = _find_task(name, sources)
    return found


def _find_task(name: str, sources: Sequence[Source]) -> Task:
    known: list[str] = []
    for source in sources:
        try:
            task = source.find(name)
        except UserError:  # it cannot be asked here, and what was meant may be a name before
            if not difflib.get_close_matches(name, known):
                raise
            break
        if task is not None:
            return task
        known += (*source.groups(), *source.names())
    raise UserError(f"--tasks: there is no task {name!r}; {_offer(name, known)}")


def find_group(name: str, sources: Sequence[Source]) -> Mapping[str, str] | None:
    """The members of a group, each with the metric that is averaged; None if it is none."""
    return next((groups[name] for s in sources if name in (groups := s.groups())), None)


def _offer(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"there are {', '.join(list(known)[:12])}, …"


def average(figures: Sequence[Figure]) -> Figure:
    """The plain mean of figures of independent tasks, each of the same weight."""
    count = len(figures)
    errors = [figure.stderr for figure in figures if figure.stderr is not None]
    error = math.sqrt(sum(e * e for e in errors)) / count if len(errors) == count else None
    return Figure(sum(figure.value for figure in figures) / count, error, count)


def mean(values: Sequence[float] | np.ndarray) -> Figure:
    """The mean of independent values, with the standard error of a mean."""
    array = np.asarray(values, np.float64)
    count = len(array)
    error = float(array.std(ddof=1) / math.sqrt(count)) if count > 1 else None
    return Figure(float(array.mean()), error, count)


def ratio(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray
) -> Figure:
    """Σ numerators / Σ denominators over independent units, say nats per token over documents.

    The standard error is that of the linearised ratio (delta method):
    √(n/(n−1) · Σ (a − r·b)²) / Σ b.
    """
    a, b = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    value, count = float(a.sum() / b.sum()), len(a)
    error = None
    if count > 1:
        residuals = np.sum(np.square(a - value * b)) * count / (count - 1)
        error = float(math.sqrt(residuals) / b.sum())
    return Figure(value, error, count)


def exponential(figure: Figure, rate: float = 1.0) -> Figure:
    """exp(rate · figure), its standard error by the delta method."""
    value = math.exp(min(rate * figure.value, 700.0))  # beyond it float64 overflows
    error = None if figure.stderr is None else abs(rate) * value * figure.stderr
    return Figure(value, error, figure.count)
