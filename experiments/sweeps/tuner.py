"""Which runs of a sweep wait for tuning, and with what value they train when it is done."""

import copy

from carve_jax.errors import UserError
from experiments.sweeps.plan import Plan, PlannedRun, set_field
from experiments.sweeps.store import Store
from experiments.sweeps.tuning import Choice, choose, read_choice, write_choice


class Tuner:
    """Gives the runs of the comparison the values that the tuning of their variants chose.

    Raises:
      UserError: a recorded choice does not read, or is of another tuning.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self._plan = plan
        self._store = store
        self._trials: dict[tuple[str, str], list[PlannedRun]] = {}
        for run in plan.trials:
            self._trials.setdefault((run.task, run.variant), []).append(run)
        self._choices: dict[tuple[str, str], Choice] = {}
        for trials in self._trials.values():
            self._choice(trials[0])  # what does not read is told before anything starts

    def pending(self, run: PlannedRun) -> list[PlannedRun]:
        """The tuning's runs that a run still waits for."""
        if self._plan.tuning is None or run.trial is not None or self._choice(run) is not None:
            return []
        return [each for each in self._of(run) if not self._store.is_over(each)]

    def tuned(self, run: PlannedRun) -> PlannedRun:
        """A run that waits for none, with its variant's value.

        Raises:
          UserError: no value could be trained with, or the recorded choice is of another tuning.
        """
        if self._plan.tuning is None or run.trial is not None:
            return run
        choice = self._choice(run) or self._choose(run)
        config = copy.deepcopy(run.config).unlock()
        set_field(config, choice.tuning.field, choice.value, run.id)
        return run._replace(config=config)

    def _of(self, run: PlannedRun) -> list[PlannedRun]:
        return self._trials[run.task, run.variant]

    def _choice(self, run: PlannedRun) -> Choice | None:
        key = run.task, run.variant
        if key in self._choices:
            return self._choices[key]
        found = read_choice(self._store.workdir, *key)
        if found is None:
            return None
        if found.tuning != self._plan.tuning:
            raise UserError(
                f"{self._store.workdir} has a choice for {run.task}.{run.variant} that is of "
                "another tuning: give another --workdir, or the sweep that is there"
            )
        self._choices[key] = found
        return found

    def _choose(self, run: PlannedRun) -> Choice:
        assert self._plan.tuning is not None
        metric = self._plan.tasks[run.task]["metrics"][0]
        found = {
            (each.trial, each.seed): self._store.last_figures(each).get(metric["name"])
            for each in self._of(run)
            if self._store.is_done(each)  # the others diverged
        }
        grid, seeds = self._plan.tuning.grid, self._plan.tuning.seeds
        results = [[found.get((value, seed)) for seed in seeds] for value in grid]
        choice = choose(self._plan.tuning, results, better=metric["better"])
        if choice is None:
            raise UserError(
                f"no value of the grid trains {run.task}.{run.variant}: with each, a run of the "
                f"tuning diverged; give tune.grid others than {', '.join(map(str, grid))}"
            )
        write_choice(self._store.workdir, run.task, run.variant, choice)
        return choice
