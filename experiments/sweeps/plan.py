"""From a sweep's config to its runs, all of them checked before the first one starts."""

import copy
import fnmatch
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from carve_jax.accounting import cache_bytes, parameter_shapes
from carve_jax.config import LMConfig
from carve_jax.data.packing import check_alignment
from carve_jax.errors import UserError
from carve_jax.model import count_parameters
from carve_jax.ranges import check_number
from carve_jax.training.settings import (
    check_names,
    flatten,
    nearest,
    read_settings,
)
from experiments import cli
from experiments.sweeps.tuning import Tuning, read_tuning

FIELDS = (
    *("name", "question", "baseline", "seeds", "tasks", "axes", "combine", "extra", "matched"),
    "tune",
)
BETTER = ("lower", "higher")
METRIC = ("name", "better", "title")  # and "solved", of one that a task can be solved by


class Variant(NamedTuple):
    """One point of the compared axis.

    Attributes:
      labels: what it stands for, such as {"gate_chunk": 64}.
      overrides: fields of a run's config by dotted name.
    """

    name: str
    title: str
    labels: dict[str, Any]
    overrides: dict[str, Any]


class PlannedRun(NamedTuple):
    """One run.

    Attributes:
      overrides: all that its config has otherwise than its task's, by dotted name.
      cache_bytes: what a decoder carries of one sequence of its length: states, content, the short
        convolutions' last tokens, keys and values of attention.
      tokens: positions of all its batches; documents that end early leave some of them empty.
      trial: of a run of the tuning, the value that it tries; None of a run of the comparison.
    """

    id: str
    task: str
    variant: str
    seed: int
    overrides: dict[str, Any]
    config: ConfigDict
    parameters: int
    cache_bytes: int
    tokens: int
    trial: float | None = None


class Plan(NamedTuple):
    """A sweep, resolved.

    Attributes:
      matched: in words, what its runs have in common and what not.
      tasks: title, metrics and config of each task, as plain values.
      runs: of the comparison.
      tuning: what is tuned for each task and variant; None if nothing is.
      trials: the runs of the tuning.
    """

    name: str
    question: str
    baseline: str
    matched: str
    tasks: dict[str, dict[str, Any]]
    variants: tuple[Variant, ...]
    runs: tuple[PlannedRun, ...]
    tuning: Tuning | None = None
    trials: tuple[PlannedRun, ...] = ()

    @property
    def every(self) -> tuple[PlannedRun, ...]:
        """All runs, those of the tuning first."""
        return self.trials + self.runs


def make_plan(sweep: ConfigDict, settings: list[str], base: ConfigDict | None = None) -> Plan:
    """All the runs of a sweep, each with a config that training accepts.

    Args:
      sweep: see configs/sweeps/parts.py.
      settings: `--config.KEY=VALUE` for the config of every task, before the variants change it.
      base: takes the place of all the tasks' configs: one task, "text".

    Raises:
      UserError: a sweep that says something wrong, a run that could not be trained, or parameters
        that are not as equal as the sweep says.
    """
    check_names(sweep.keys(), FIELDS, "the sweep")
    variants = expand(sweep)
    names = [variant.name for variant in variants]
    if sweep.baseline not in names:
        near = nearest(sweep.baseline, names)
        raise UserError(f"the sweep's baseline {sweep.baseline!r} is no variant; {near}")
    tasks = _tasks(sweep, settings, base)
    seeds = _seeds(sweep.seeds, "seeds")
    tuning = read_tuning(sweep.tune, seeds, {v.name: v.overrides for v in variants})
    widths = {}
    for task, section in tasks.items():
        shared = {v.name: _shared(section["config"], v, f"{task}.{v.name}") for v in variants}
        widths[task] = _equal_widths(sweep, shared)

    def run(task: str, variant: Variant, seed: int, **more: Any) -> PlannedRun:
        overrides = variant.overrides | widths[task].get(variant.name, {}) | {"seed": seed}
        return _run(task, variant.name, seed, overrides, tasks[task]["config"], **more)

    # Seed by seed: pairs are complete early, and runs side by side do not compile the same.
    runs = [run(task, v, seed) for seed, task, v in itertools.product(seeds, tasks, variants)]
    trials = (
        [
            run(task, variant, seed, tuning=tuning, trial=value)
            for seed, task, value, variant in itertools.product(
                _seeds(tuning.seeds, "tune.seeds"), tasks, tuning.grid, variants
            )
        ]
        if tuning
        else []
    )
    return Plan(
        name=sweep.name,
        question=sweep.question,
        baseline=sweep.baseline,
        matched=_matched(sweep, runs, {v.name: v.title for v in variants}, tasks),
        tasks={
            task: {**section, "config": flatten(section["config"])}
            for task, section in tasks.items()
        },
        variants=variants,
        runs=tuple(runs),
        tuning=tuning,
        trials=tuple(trials),
    )


def expand(sweep: ConfigDict) -> tuple[Variant, ...]:
    """The axes combined by "product" or "zip", and the variants beside them.

    Raises:
      UserError: axes that do not fit together, or a name that is taken or cannot be a file's.
    """
    axes = [[(axis["name"], value) for value in axis["values"]] for axis in sweep.axes]
    if sweep.combine == "product":
        points: Iterable[tuple[Any, ...]] = itertools.product(*axes) if axes else ()
    elif sweep.combine == "zip":
        lengths = {len(axis) for axis in axes}
        if len(lengths) > 1:
            sizes = ", ".join(f"{a['name']} has {len(a['values'])}" for a in sweep.axes)
            raise UserError(f"axes combined by zip need as many values each, but {sizes}")
        points = zip(*axes, strict=True)
    else:
        raise UserError(f"the sweep's combine is {sweep.combine!r}: give 'product' or 'zip'")
    variants = [_variant(point) for point in points]
    variants += [_variant([("variant", value)]) for value in sweep.extra]
    names = [variant.name for variant in variants]
    for name in names:
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(
                f"the variant {name!r} names files: give letters, digits, - and _ alone"
            )
        if names.count(name) > 1:
            raise UserError(f"two variants are called {name!r}: give each label once")
    if not names:
        raise UserError("the sweep has no variants: give it axes, or extra ones")
    return tuple(variants)


def _variant(point: Iterable[tuple[str, Mapping[str, Any]]]) -> Variant:
    labels: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    values = []
    for axis, value in point:
        values.append(value)
        labels[axis] = value["value"]
        twice = sorted(overrides.keys() & value["overrides"].keys())
        if twice:
            raise UserError(f"two axes of the sweep set {', '.join(twice)}: let one of them")
        overrides |= value["overrides"]
    return Variant(
        name="_".join(value["label"] for value in values),
        title=", ".join(value["title"] for value in values),
        labels=labels,
        overrides=overrides,
    )


def _tasks(
    sweep: ConfigDict, settings: list[str], base: ConfigDict | None
) -> dict[str, dict[str, Any]]:
    sections = {name: dict(section.items()) for name, section in sweep.tasks.items()}
    if base is not None:
        if "text" not in sections:
            raise UserError("--base gives the task 'text' another config, and this sweep has none")
        sections = {"text": sections["text"] | {"title": "text", "config": base}}
    for name, section in sections.items():
        check_names(section.keys(), ("title", "metrics", "config"), f"the sweep's task {name!r}")
        section["config"] = cli.override(copy.deepcopy(section["config"]).unlock(), settings)
        section["metrics"] = [dict(metric) for metric in section["metrics"]]
        for metric in section["metrics"]:
            check_names(metric.keys() - {"solved"}, METRIC, f"a metric of task {name!r}")
            if metric["better"] not in BETTER:
                raise UserError(
                    f"the metric {metric['name']!r} is better {metric['better']!r}: give 'lower' "
                    "or 'higher'"
                )
    return sections


def _seeds(seeds: Iterable[Any], name: str) -> tuple[int, ...]:
    found = tuple(seeds)
    whole = all(type(seed) is int and seed >= 0 for seed in found)
    if not found or not whole or len(set(found)) < len(found):
        raise UserError(
            f"the sweep's {name} are {found!r}: give different whole numbers, at least one"
        )
    for seed in found:
        check_number("seed", seed)
    return found


def _shared(base: ConfigDict, variant: Variant, where: str) -> ConfigDict:
    """The config of a variant but for its seed."""
    config = copy.deepcopy(base).unlock()
    for dotted, value in variant.overrides.items():
        set_field(config, dotted, value, where)
    return config


def set_field(config: ConfigDict, dotted: str, value: Any, where: str) -> None:
    """Changes a field of a run's config.

    Args:
      dotted: its name.
      where: what sets it, for the message.

    Raises:
      UserError: no such field, or a value of another type.
    """
    try:
        cli.check_field(config, dotted)
        *sections, field = dotted.split(".")
        functools.reduce(lambda part, name: part[name], sections, config)[field] = value
    except (TypeError, UserError) as error:
        raise UserError(f"{where} sets {dotted}={value!r}: {error}") from error


def _run(
    task: str,
    variant: str,
    seed: int,
    overrides: dict[str, Any],
    base: ConfigDict,
    tuning: Tuning | None = None,
    trial: float | None = None,
) -> PlannedRun:
    """A run of the comparison, or with a value to try, one of the tuning."""
    name = f"{task}.{variant}.s{seed}"
    if tuning is not None and trial is not None:
        name = f"tune.{task}.{variant}.{trial:g}.s{seed}"
        overrides = overrides | {tuning.field: trial}
        if tuning.steps:
            overrides["steps"] = tuning.steps
    config = copy.deepcopy(base).unlock()
    for dotted, value in overrides.items():
        set_field(config, dotted, value, name)
    model = _checked(config, name)
    return PlannedRun(
        id=name,
        task=task,
        variant=variant,
        seed=seed,
        overrides=overrides,
        config=config,
        parameters=parameters(model),
        cache_bytes=_cache_bytes(model, config.sequence_length),
        tokens=config.steps * config.batch_size * config.sequence_length,
        trial=trial,
    )


def _checked(config: ConfigDict, where: str) -> LMConfig:
    """The model of a config that training accepts, as far as can be said without its data."""
    try:
        settings = read_settings(config)
        check_alignment(settings.sequence_length, settings.model.segment_alignment)
    except UserError as error:
        raise UserError(f"the run {where} could not be trained: {error}") from error
    return settings.model


@functools.cache
def _cache_bytes(model: LMConfig, length: int) -> int:
    return cache_bytes(model, length)


@functools.cache
def parameters(model: LMConfig) -> int:
    """The number of a model's parameters."""
    return count_parameters(parameter_shapes(model))["total"]


def _has_equal(sweep: ConfigDict) -> Callable[[str], bool]:
    """Whether a variant is to have the baseline's parameters."""
    patterns = tuple(sweep.matched.parameters)
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _equal_widths(sweep: ConfigDict, shared: Mapping[str, ConfigDict]) -> dict[str, dict[str, Any]]:
    """The MLP width that gives each variant the baseline's number of parameters."""
    wanted = parameters(_checked(shared[sweep.baseline], sweep.baseline))
    equal, widths = _has_equal(sweep), {}
    for name, config in shared.items():
        if name == sweep.baseline or not equal(name):
            continue
        width = config.model.mlp_dim
        step = 1 << max(0, width.bit_length() - 8)  # a large width stays a multiple of 16 or more
        has = parameters(_checked(config, name))
        config.model.mlp_dim = width + step
        each = parameters(_checked(config, name)) - has
        new = width + step * round((wanted - has) / each)
        if new < step:
            raise UserError(
                f"{name} has {has:,} parameters and {sweep.baseline} {wanted:,}: no MLP is narrow "
                "enough to make them equal; take a wider model, or do not match its parameters"
            )
        widths[name] = {"model.mlp_dim": new}
    return widths


def _matched(
    sweep: ConfigDict,
    runs: list[PlannedRun],
    titles: Mapping[str, str],
    tasks: Mapping[str, Mapping[str, Any]],
) -> str:
    """What the runs of a task have in common, in words; refuses what is claimed and not so."""
    check_names(sweep.matched.keys(), ("tokens", "parameters", "within"), "the sweep's matched")
    clauses = []
    for task in dict.fromkeys(run.task for run in runs):
        of_task = [run for run in runs if run.task == task]
        tokens = sorted({run.tokens for run in of_task})
        if sweep.matched.tokens and len(tokens) > 1:
            raise UserError(
                f"the sweep says that its runs have the same tokens, but those of {task} have "
                f"{tokens[0]:,} to {tokens[-1]:,}"
            )
        amount = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
        words = [f"{amount} tokens per run"]
        equal = _has_equal(sweep)
        matched = {run.parameters for run in of_task if equal(run.variant)}
        if matched:
            matched |= {r.parameters for r in of_task if r.variant == sweep.baseline}
            spread = max(matched) / min(matched) - 1
            if spread > sweep.matched.within:
                raise UserError(
                    f"the sweep says that parameters are equal within {sweep.matched.within:.1%}, "
                    f"but those of {task} go from {min(matched):,} to {max(matched):,} "
                    f"({spread:.1%})"
                )
            named = [title for name, title in titles.items() if equal(name)]
            of_which = f"{', '.join(named)} and {titles[sweep.baseline]}"
            if tuple(sweep.matched.parameters) == ("*",):
                of_which = "all variants"
            words.append(
                f"parameters of {of_which} equal within {spread:.2%} by the width of the MLP"
            )
        every = {run.parameters for run in of_task}
        if len(every) > 1:
            words.append(f"{min(every):,} to {max(every):,} parameters in all")
        else:
            words.append(f"{min(every):,} parameters")
        clauses.append(f"{tasks[task]['title']}: {', '.join(words)}")
    return "; ".join(clauses)
