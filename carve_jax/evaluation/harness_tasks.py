"""The papers' tasks as lm-evaluation-harness names them, and every other task it has.

Nothing of the harness is imported before one of its tasks is asked for.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from carve_jax.errors import UserError
from carve_jax.evaluation.recall import RECALL
from carve_jax.evaluation.tasks import Options, Task

if TYPE_CHECKING:
    from carve_jax.evaluation.harness_run import Harness

# Common-sense reasoning as Gated DeltaNet-2 reports it (arXiv 2605.22791): the figure that its
# table shows of each.
COMMON_SENSE = {
    "lambada_openai": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
    "social_iqa": "acc",
    "boolq": "acc",
}
GROUPS = {"common_sense": COMMON_SENSE, "recall": RECALL}


class HarnessTasks:
    """A `Source`: the groups above, and all tasks and groups of the harness by their names."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._harness: Harness | None = None

    def groups(self) -> Mapping[str, Mapping[str, str]]:
        """The groups of the papers."""
        return GROUPS

    def find(self, name: str) -> Task | None:
        """The harness's task of that name.

        Raises:
          UserError: the harness is not installed.
        """
        harness = self._open(name)
        return harness.task(name) if harness.knows(name) else None

    def names(self) -> Iterable[str]:
        """All names of the harness."""
        return self._open("").names()

    def fetch(self, name: str) -> None:
        """Downloads the data of a task, or finds it where it was kept.

        Raises:
          UserError: it cannot be had.
        """
        self._open(name).fetch(name)

    def _open(self, name: str) -> "Harness":
        if self._harness is None:
            try:
                from carve_jax.evaluation.harness_run import Harness
            except ImportError as error:
                raise UserError(
                    f"--tasks: {name!r} is no task of this project, and those of "
                    f"lm-evaluation-harness need its package: pip install -e '.[eval]' ({error})"
                ) from error
            self._harness = Harness(self._options.include_path)
        return self._harness
