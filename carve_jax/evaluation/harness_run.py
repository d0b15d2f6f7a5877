"""Runs tasks of lm-evaluation-harness and gives every figure its standard error."""

import contextlib
import dataclasses
import logging
import math
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import numpy as np
from lm_eval.api import metrics as harness_metrics
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from carve_jax.errors import UserError
from carve_jax.evaluation.answers import Answers
from carve_jax.evaluation.evaluated_model import EvaluatedModel
from carve_jax.evaluation.lm_harness import CarveLM
from carve_jax.evaluation.recall import RECALL, RECALL_TOKENS, recall_config
from carve_jax.evaluation.tasks import Figure, Options, Result, Task, exponential, mean, ratio
from carve_jax.files import local_path, open_regular, told

RESAMPLES = 1000
BY_SIZE = (harness_metrics.weighted_perplexity, harness_metrics.bits_per_byte)  # of the texts
# Where the harness keeps the papers' tasks, so that one of them does not take reading all 14,000.
FOLDERS = {
    **{name: name for name in ("piqa", "hellaswag", "winogrande", "openbookqa", "wikitext")},
    **{name: name for name in ("swde", "squad_completion", "fda")},
    **{"arc_easy": "arc", "arc_challenge": "arc", "social_iqa": "siqa"},
    **{"boolq": "super_glue/boolq", "lambada_openai": "lambada"},
}


class Harness:
    """The tasks of the harness, and of directories with YAML files.

    Args:
      include_path: the directories; what they define goes before what the harness has. Such files
        may name functions of Python files beside them, which the harness runs.
    """

    def __init__(self, include_path: Sequence[str]) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        folders = [local_path(path, "--include_path") for path in include_path]
        for folder in folders:
            if not os.path.isdir(folder):
                raise UserError(f"--include_path={folder}: there is no such directory")
            _check_files(folder)
        self._include = list(map(str, folders))
        root = Path(lm_eval.tasks.__file__).parent
        known = [str(root / folder) for folder in sorted(set(FOLDERS.values()))]
        self._manager = TaskManager(include_path=[*known, *self._include], include_defaults=False)
        self._complete = False

    def knows(self, name: str) -> bool:
        """Whether there is a task, group or tag of that name."""
        if name in RECALL or name in self._manager.all_tasks:
            return True
        return name in self.names()

    def names(self) -> Iterable[str]:
        """Names of tasks, groups and tags."""
        if not self._complete:
            self._manager = TaskManager(include_path=self._include or None)
            self._complete = True
        return self._manager.all_tasks

    def task(self, name: str) -> Task:
        """The task of a name that `knows` knows."""

        def run(evaluated: EvaluatedModel, options: Options) -> Result:
            return self.run(name, evaluated, options)

        return run

    def run(self, name: str, evaluated: EvaluatedModel, options: Options) -> Result:
        """Evaluates a task, or all tasks of a group.

        Raises:
          UserError: its data is not there, or an input is too long for the model.
        """
        kept = options.input_tokens or (RECALL_TOKENS if name in RECALL else 0)
        with contextlib.closing(Answers(options.keep)) as answers:
            model = CarveLM(evaluated, input_tokens=kept, answers=answers)
            own = recall_config(name, model.tok_encode, model.tok_decode, kept)
            tasks = self._load(own or name)
            before = evaluated.scorer.counts
            found = simple_evaluate(
                model=model,
                tasks=list(tasks.values()),
                task_manager=self._manager,
                limit=options.limit,
                num_fewshot=options.num_fewshot,
                bootstrap_iters=0,
                use_cache=None,  # the harness's cache is of pickles
                cache_requests=False,  # so is this one
                random_seed=options.seed,
                numpy_random_seed=options.seed,
                fewshot_random_seed=options.seed,
            )
        assert found is not None  # it is None on processes that are not the first
        figures: dict[str, Figure] = {}
        for task_name, task in tasks.items():
            prefix = "" if len(tasks) == 1 else f"{task_name}/"
            samples = found["samples"][task_name]
            for metric, figure in task_figures(task, found["results"][task_name], samples):
                figures[prefix + metric] = figure
        facts = _facts(found, tasks, evaluated.scorer.counts, before)
        facts["lossless_tokenizer"] = model.lossless
        if not model.lossless:
            facts["lossy_metrics"] = list(_by_size(tasks, figures))
        return Result(figures, facts | ({"input_tokens": kept} if kept else {}))

    def fetch(self, name: str) -> None:
        """Downloads the data of a task, or finds it where it was kept."""
        self._load(recall_config(name, lambda _: [], lambda _: "", 0) or name)

    def _load(self, spec: str | dict[str, Any]) -> dict[str, Any]:
        name = spec if isinstance(spec, str) else spec["task"]
        try:
            return dict(self._manager.load([spec])["tasks"])
        except Exception as error:  # of the data's libraries, which raise many kinds
            raise UserError(_unavailable_reason(name, error)) from error


def _check_files(folder: Path) -> None:
    """Raises UserError for what the harness would wait for, or read, without end."""
    for path in folder.rglob("*.y*ml"):
        with told(path, "remove it, or put the file itself there"):
            open_regular(path).close()


def _unavailable_reason(name: str, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (
        f"the data of task {name!r} cannot be loaded ({type(error).__name__}: {reason[:200]}): "
        f"with a network, set HF_HOME=DIR and run --fetch --tasks={name}; without one, bring that "
        "DIR and set HF_HOME=DIR and HF_DATASETS_OFFLINE=1"
    )


def _by_size(tasks: Mapping[str, Any], figures: Iterable[str]) -> Iterable[str]:
    """The names of those figures that are likelihoods over the bytes or words of whole texts."""
    for name in figures:
        task, _, metric = name.rpartition("/")
        aggregations = (tasks[task] if task else next(iter(tasks.values()))).aggregation()
        if aggregations.get(metric.partition(",")[0]) in BY_SIZE:
            yield name


def _facts(found: Mapping[str, Any], tasks: Mapping[str, Any], after: Any, before: Any) -> dict:
    return {
        "lm_eval": found.get("lm_eval_version"),
        "versions": dict(found["versions"]),
        "num_fewshot": dict(found["n-shot"]),
        "examples": {name: counts["effective"] for name, counts in found["n-samples"].items()},
        "data": {name: task.config.dataset_path for name, task in tasks.items()},
        "scored_tokens": {
            key: getattr(after, key) - getattr(before, key) for key in ("requested", "read")
        },
    }


def task_figures(
    task: Any, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> Iterable[tuple[str, Figure]]:
    """Each metric of a task with the standard error over its examples."""
    aggregations = task.aggregation()
    for key, value in results.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        values = [
            sample[metric]
            for sample in samples
            if sample["filter"] == filtered and metric in sample
        ]
        figure = with_error(aggregations.get(metric, np.mean), float(value), values)
        yield metric if filtered == "none" else key, figure


def with_error(aggregate: Callable[..., float], value: float, values: Sequence[Any]) -> Figure:
    """A figure of the harness, with the standard error that belongs to how it was made of values.

    A mean's is the standard deviation over √n; a perplexity's and a ratio's that of the delta
    method; any other's that of a bootstrap over the examples.
    """
    if aggregate in (harness_metrics.mean, np.mean):
        figure = mean(values)
    elif aggregate is harness_metrics.perplexity:
        figure = exponential(mean(values), -1)
    elif aggregate in BY_SIZE:
        figure = ratio(*zip(*values, strict=True))
        if aggregate is harness_metrics.weighted_perplexity:
            figure = exponential(figure, -1)
        elif figure.stderr is not None:
            figure = dataclasses.replace(figure, stderr=figure.stderr / math.log(2))
    else:
        return Figure(value, _bootstrap(aggregate, values), len(values))
    return dataclasses.replace(figure, value=value)


def _bootstrap(aggregate: Callable[..., float], values: Sequence[Any]) -> float | None:
    if len(values) < 2:
        return None
    draw = random.Random(0)
    resampled = [aggregate(draw.choices(values, k=len(values))) for _ in range(RESAMPLES)]
    return float(np.std(resampled, ddof=1))
