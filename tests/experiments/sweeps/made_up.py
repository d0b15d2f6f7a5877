"""Sweeps as `experiments.sweep` leaves them, made up in a moment: their results are given."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from carve_jax.training.reports import metrics, provenance

COMMIT = "c0ffee" + "0" * 34
BITS = {"name": "eval_bits_per_byte", "better": "lower", "title": "held-out bits per byte"}
ACCURACY = {"name": "eval_accuracy", "better": "higher", "title": "held-out accuracy"}
STEPS = (50, 100, 150, 200)

Truth = Callable[[str, str, int], float]
"""(task, variant, seed) -> the final value of the task's first metric."""


def truth_of(shifts: Mapping[str, float], noise: float = 0.01) -> Truth:
    """2 bits, the variant's shift, what a seed brings to all variants and what it brings to one."""

    def value(task: str, variant: str, seed: int) -> float:
        shared = np.random.default_rng(seed).normal(0, 3 * noise)
        own = np.random.default_rng([seed, sum(variant.encode())]).normal(0, noise)
        return 2.0 + shifts[variant] + shared + own

    return value


def write_sweep(
    workdir: Path,
    titles: Mapping[str, str],
    truth: Truth,
    *,
    seeds: int = 5,
    tasks: Mapping[str, list[dict[str, str]]] | None = None,
    status: Callable[[str], dict[str, Any]] = lambda run: {},
) -> Path:
    """A finished sweep, the first title the baseline's; `status` changes what is said of a run."""
    tasks = tasks or {"text": [BITS]}
    runs = [
        {
            "id": f"{task}.{variant}.s{seed}",
            "task": task,
            "variant": variant,
            "seed": seed,
            "overrides": {},
            "parameters": 800_000 - 20_000 * i,
            "tokens": STEPS[-1] * 1000,
        }
        for task in tasks
        for i, variant in enumerate(titles)
        for seed in range(seeds)
    ]
    record = {
        "name": "made_up",
        "question": "Does CARVE predict text better than GDN-2?",
        "command": "python -m experiments.sweep --config=configs/sweeps/made_up.py",
        "commit": COMMIT,
        "uncommitted_changes": False,
        "started": "2026-11-25T10:00:00+00:00",
        "versions": {"jax": "0.10.2"},
        "devices": ["cpu"],
        "baseline": next(iter(titles)),
        "matched": "tokens: 200,000 a run",
        "tasks": {name: {"title": name, "metrics": found} for name, found in tasks.items()},
        "variants": {name: {"title": title, "labels": {}} for name, title in titles.items()},
        "runs": runs,
    }
    (workdir / "runs").mkdir(parents=True)
    (workdir / "sweep.json").write_text(json.dumps(record))
    for run in runs:
        metric = tasks[run["task"]][0]["name"]
        final = truth(run["task"], run["variant"], run["seed"])
        _write_run(workdir / "runs", run, metric, final, status(run["id"]))
    return workdir


def _write_run(
    runs: Path, run: dict[str, Any], metric: str, final: float, changed: dict[str, Any]
) -> None:
    directory = runs / run["id"]
    directory.mkdir()
    state = changed.get("state", "done")
    steps = STEPS if state == "done" else STEPS[:2]
    lines = [
        {
            "step": step,
            "tokens": step * 1000,
            metric: None if math.isnan(final) else final + 2 * math.exp(-step / 40),
            "tokens_per_second": 12_000.0 + step + 100 * run["seed"],
        }
        for step in steps
    ]
    if state == "done":
        lines[-1][metric] = None if math.isnan(final) else final
    text = "".join(json.dumps(line) + "\n" for line in lines if state != "waiting")
    (directory / metrics.FILE_NAME).write_text(text)
    facts = {"commit": COMMIT, "earlier": []}
    (directory / provenance.FILE_NAME).write_text(json.dumps(facts))
    told = {
        "state": state,
        "attempts": 1,
        "exit_code": 0,
        "message": "",
        "seconds": 50.0,
        "peak_rss_bytes": 500_000_000,
        "device_peak_bytes": None,
        "commit": COMMIT,
    }
    (runs / f"{run['id']}.status.json").write_text(json.dumps(told | changed))
