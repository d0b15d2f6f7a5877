"""Runs the tasks of an evaluation that have no result yet, and prints what was found."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from carve_jax.evaluation.evaluated_model import EvaluatedModel
from carve_jax.evaluation.tasks import Options, Result, Source, Task, average, find_group
from experiments.evaluating.record import Record

LOSSY = (
    "the tokenizer does not give back every text byte for byte, so the likelihood is that of other "
    "text than the bytes and words are counted of: not to be compared with other tokenizers"
)


def measure(
    tasks: Mapping[str, Task],
    evaluated: EvaluatedModel,
    options: Options,
    settings: dict[str, Any],
    record: Record,
) -> dict[str, Result]:
    """Runs the tasks that are not in the record yet, and prints every figure."""
    results = {}
    for number, (name, task) in enumerate(tasks.items(), start=1):
        found = record.find(name, settings)
        if found is None:
            print(f"[{number}/{len(tasks)}] {name}", flush=True)
            digest = hashlib.sha256(repr((name, settings)).encode()).hexdigest()[:12]
            keep = record.path.with_name(f".{record.path.stem}_{digest}.jsonl")
            start = time.perf_counter()
            found = task(evaluated, options._replace(keep=keep))
            record.add(name, settings, found, round(time.perf_counter() - start, 1))
            keep.unlink(missing_ok=True)
        results[name] = found
    return results


def averages(
    names: Sequence[str], sources: Sequence[Source], results: Mapping[str, Result]
) -> dict[str, Result]:
    """The mean over each group that was asked for."""
    found = {}
    for name in names:
        if members := find_group(name, sources):
            figures = [results[task].metrics[metric] for task, metric in members.items()]
            found[name] = Result({"average": average(figures)}, {"metrics": dict(members)})
    return found


def print_table(results: Mapping[str, Result]) -> None:
    """A line for each number; those that a lossy tokenizer falsifies are marked."""
    width = max([len(name) for name in results] + [8]) + 2
    print(f"{'task':<{width}} {'metric':<22} {'value':>14} {'standard error':>15} {'count':>9}")
    lossy = False
    for name, result in results.items():
        for metric, figure in result.metrics.items():
            error = "" if figure.stderr is None else f"± {figure.stderr:,.4f}"
            if metric in result.facts.get("lossy_metrics", ()):
                metric, lossy = f"{metric} *", True
            print(
                f"{name:<{width}} {metric:<22} {figure.value:>14,.4f} {error:>15} "
                f"{figure.count:>9,}"
            )
    if lossy:
        print(f"* {LOSSY}")
