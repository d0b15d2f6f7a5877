"""What sweeps are made of: axes and their values, tasks, and the fields of a sweep.

A run of a sweep is one task, one variant and one seed. Variants are the combinations of the axes'
values, and those beside them; they are compared with the baseline, seed by seed.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import mqar, overwriting_recall, quickstart

BITS = {"name": "eval_bits_per_byte", "better": "lower", "title": "held-out bits per byte"}
LOSS = {"name": "eval_loss", "better": "lower", "title": "held-out loss, nats per token"}
ACCURACY = {"name": "eval_accuracy", "better": "higher", "title": "held-out accuracy"}


def value(
    label: str, title: str, overrides: Mapping[str, Any], value: Any = None
) -> dict[str, Any]:
    """One value of an axis, or one variant.

    Args:
      label: its part of the variant's name; letters, digits, - and _.
      title: the same in words.
      overrides: fields of a run's config by dotted name.
      value: what it stands for on the axis, such as a number; the label if not given.
    """
    return {
        "label": label,
        "title": title,
        "overrides": dict(overrides),
        "value": label if value is None else value,
    }


def mixer(name: str, title: str, **model: Any) -> dict[str, Any]:
    """The variant with that mixer in all layers, and any other fields of the model changed.

    Sections of the model are mappings: `gates={"write": "scalar"}`.
    """
    overrides: dict[str, Any] = {"model.pattern": (name,)}
    for field, new in model.items():
        nested = new.items() if isinstance(new, Mapping) else ()
        overrides |= {f"model.{field}.{inner}": each for inner, each in nested}
        if not isinstance(new, Mapping):
            overrides[f"model.{field}"] = new
    return value(name, title, overrides)


def axis(name: str, *values: dict[str, Any]) -> dict[str, Any]:
    """An axis and its values."""
    return {"name": name, "values": values}


def text(**model: Any) -> ConfigDict:
    """Byte-level language modelling of the language reference that every Python carries.

    The quickstart's model and recipe, smaller and shorter: a run takes about 100 s of a core's time
    (measured beside other work), and GDN-2 ends at 2.26, below gzip -9 (2.39 bits per byte).
    """
    config = quickstart.get_config()
    config.model.update({"d_model": 96, "mlp_dim": 256, "num_heads": 2, **model})
    config.steps = config.eval_every = config.checkpoint_every = 200
    config.log_every = 10
    config.sample_tokens = 0
    return ConfigDict(
        {"title": "text: Python's language reference", "config": config, "metrics": (BITS, LOSS)}
    )


def recall(**model: Any) -> ConfigDict:
    """Multi-query associative recall: what a fixed-size state can look up."""
    config = mqar.get_config()
    config.model.update(model)
    return asked("associative recall", config)


def overwriting(**model: Any) -> ConfigDict:
    """Recall of keys that are written again: what a state can replace; half a minute of a core."""
    config = overwriting_recall.get_config()
    config.steps = config.checkpoint_every = 1000
    config.model.update(model)
    return asked("recall with overwriting", config)


def asked(title: str, config: ConfigDict, solved: float | None = None) -> ConfigDict:
    """A task whose figure is the accuracy of what is asked for.

    Args:
      title: in words.
      config: of a run.
      solved: the accuracy from which a seed counts as having solved it; None for a task that is
        not solved or unsolved, but done better or worse.
    """
    accuracy = ACCURACY if solved is None else ACCURACY | {"solved": solved}
    return ConfigDict({"title": title, "config": config, "metrics": (accuracy, LOSS)})


def tune(
    *grid: float,
    field: str = "optimizer.peak_learning_rate",
    seeds: Iterable[int] = (1000, 1001),
    steps: int = 0,
) -> dict[str, Any]:
    """What is tuned for every task and variant before they are compared.

    Args:
      *grid: the values tried; the best mean of the task's first metric is taken.
      field: of the optimizer, by dotted name.
      seeds: that each value is tried with; the comparison has others.
      steps: of each of these runs; 0 for as many as a run of the comparison takes.
    """
    return {"field": field, "grid": grid, "seeds": tuple(seeds), "steps": steps}


def sweep(
    name: str,
    question: str,
    *,
    baseline: str,
    tasks: Mapping[str, ConfigDict],
    axes: Iterable[dict[str, Any]] = (),
    extra: Iterable[dict[str, Any]] = (),
    combine: str = "product",
    seeds: Iterable[int] = (0, 1, 2, 3, 4),
    equal_parameters: Iterable[str] = (),
    within: float = 0.01,
    tune: Mapping[str, Any] | None = None,
) -> ConfigDict:
    """A sweep.

    Args:
      name: of the sweep.
      question: that it answers, in one sentence.
      baseline: the variant that the others are compared with.
      tasks: by name; of `text` and its like.
      axes: of `axis`.
      extra: variants beside those of the axes, of `value` or `mixer`.
      combine: "product", each value of an axis with each of the others, or "zip", in step.
      seeds: of every variant, the same for all.
      equal_parameters: variants, by name or pattern ("*"), whose MLP is made as wide as gives them
        the baseline's parameters.
      within: how far parameters that are said to be equal may lie apart, as a share.
      tune: of `tune`; without it all variants train with what their task's config says, which
        reports call an untuned comparison.
    """
    return ConfigDict(
        {
            "name": name,
            "question": question,
            "baseline": baseline,
            "seeds": tuple(seeds),
            "tasks": dict(tasks),
            "axes": tuple(axes),
            "combine": combine,
            "extra": tuple(extra),
            "matched": {"tokens": True, "parameters": tuple(equal_parameters), "within": within},
            "tune": dict(tune or {}),
        }
    )
