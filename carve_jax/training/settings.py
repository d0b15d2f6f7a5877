"""The config of a run: checked before anything is built, and held against that of its directory."""

import dataclasses
import difflib
import json
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ml_collections import ConfigDict, FieldReference

from carve_jax.config import FORMER, LMConfig, with_sections
from carve_jax.errors import UserError
from carve_jax.files import (
    local_path,
    made_directory,
    read_json,
    reason_of,
    shown,
    write_atomically,
)
from carve_jax.mixers.changes import SECTIONS as MODEL_SECTIONS
from carve_jax.sharding import AXES
from carve_jax.training import metrics
from carve_jax.training.guard import FIELDS as GUARD
from carve_jax.training.guard import Guard
from carve_jax.training.ranges import check_number, check_numbers

FILE_NAME = "config.json"
CHECKPOINTS = "checkpoints"  # the folder of a run directory

SECTIONS = ("model", "data", "optimizer", "mesh", "guard")
OPTIMIZER = (
    "peak_learning_rate", "warmup_fraction", "final_fraction", "weight_decay", "beta1", "beta2",
    "clip_norm", "accumulate_steps",
)  # fmt: skip
COUNTS = (
    "batch_size", "sequence_length", "steps", "loss_chunk", "eval_every", "log_every",
    "checkpoint_every", "keep_checkpoints",
)  # fmt: skip
COUNTS_OR_ZERO = ("keep_every", "keep_best", "log_norms_every")
OTHERS = (
    "seed", "z_loss", "sample_prompt", "sample_tokens", "watchdog_seconds", "profile_steps",
)  # fmt: skip

# What a run may change when it is resumed: all that leaves parameters and data as they would be.
RESUMABLE = frozenset(
    {
        "eval_every", "log_every", "checkpoint_every", "keep_checkpoints", "sample_prompt",
        "sample_tokens", "mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence",
        "keep_every", "keep_best", "log_norms_every", "watchdog_seconds", "profile_steps",
        "guard.loss_factor", "guard.grad_factor", "guard.action", "guard.limit",  # from there on
    }
)  # fmt: skip


WITH_DIGESTS = ("token_files", "mixture")

OPTIONAL = {
    f"model.{name}": get_args(hint)[0]
    for name, hint in get_type_hints(LMConfig).items()
    if types.NoneType in get_args(hint)
} | {
    f"model.{section}.{name}": kind
    for section, changes in MODEL_SECTIONS.items()
    for name, kind in changes.kinds.items()
}
"""Fields that may be None, by dotted name, and of which type they are otherwise."""


def check_settings(config: ConfigDict) -> None:
    """Raises UserError for a field that is missing, unknown or out of range.

    The sections `model` and `data` are checked, but for their numbers, by the code they belong to.
    """
    check_names(config.keys(), SECTIONS + COUNTS + COUNTS_OR_ZERO + OTHERS, "config")
    sections = {name: section_of(config, name) for name in SECTIONS}
    check_names(sections["optimizer"].keys(), OPTIMIZER, "config.optimizer")
    check_names(sections["mesh"].keys(), AXES, "config.mesh")
    check_names(sections["guard"].keys(), GUARD, "config.guard")
    check_numbers(config.to_dict())
    Guard.from_config(config.guard)
    check_reports(config)
    if config.batch_size % config.optimizer.accumulate_steps:
        raise UserError(
            f"config.batch_size is {config.batch_size}, but must be a multiple of "
            f"config.optimizer.accumulate_steps, which is {config.optimizer.accumulate_steps}"
        )


def section_of(config: ConfigDict, name: str) -> ConfigDict:
    """A section of a config.

    Raises:
      UserError: it is missing, or a value without fields.
    """
    section = config.get(name)
    if not isinstance(section, ConfigDict):
        given = f"config.{name} is {shown(section)}" if name in config else f"config lacks {name}"
        raise UserError(f"{given}, which must be a section of fields: start from configs/base.py")
    return section


def check_sizes(config: ConfigDict) -> None:
    """Raises UserError unless a config says how large its batches are."""
    for name in ("batch_size", "sequence_length"):
        if name not in config:
            raise UserError(f"config lacks {name}: start from configs/base.py")
        check_number(name, config[name])


def check_reports(config: ConfigDict) -> None:
    """Raises UserError for a field, out of range, of what a run keeps and says."""
    steps = config.profile_steps
    pair = isinstance(steps, (list, tuple)) and [type(step) for step in steps] == [int, int]
    if not pair or (tuple(steps) != (0, 0) and not 1 <= steps[0] <= steps[1]):
        raise UserError(
            f"config.profile_steps is {shown(steps)}, but must be the first and the last step to "
            "trace, such as (10, 12), or (0, 0) for none"
        )
    if not isinstance(config.sample_prompt, str):
        raise UserError(f"config.sample_prompt is {shown(config.sample_prompt)}, but must be text")
    often, seldom = sorted((config.eval_every, config.checkpoint_every))
    if config.keep_best and seldom % often:
        raise UserError(
            "config.keep_best needs checkpoints that were evaluated at their step, but "
            f"config.checkpoint_every is {config.checkpoint_every} and config.eval_every is "
            f"{config.eval_every}: make one a multiple of the other"
        )


def check_names(given: Iterable[str], expected: tuple[str, ...], where: str) -> None:
    """Raises UserError unless `given` and `expected` are the same names; offers the nearest."""
    given = list(given)
    for name in given:
        if name not in expected:
            raise UserError(f"{where} has no field {shown(name)}; {nearest(name, expected)}")
    missing = [name for name in expected if name not in given]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}: start from configs/base.py")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """ "did you mean …?" if a name is close, and otherwise all that are allowed."""
    allowed = list(allowed)
    close = difflib.get_close_matches(name, allowed, n=1)
    return f"did you mean {close[0]!r}?" if close else f"allowed are {', '.join(allowed)}"


def make_model_config(config: ConfigDict) -> LMConfig:
    """`LMConfig` of the section `model`.

    Raises:
      UserError: an unknown field, or values that LMConfig refuses.
    """
    section = section_of(config, "model").to_dict()
    check_numbers(section, "model.")
    fields = tuple(field.name for field in dataclasses.fields(LMConfig))
    for name in section:
        if name in FORMER:
            raise UserError(moved(f"config.model.{name}", name))
        if name not in fields:
            raise UserError(f"config.model has no field {shown(name)}; {nearest(name, fields)}")
    if isinstance(section.get("pattern"), list):  # as JSON gives it back
        section["pattern"] = tuple(section["pattern"])
    try:
        return LMConfig(**section)
    except (ValueError, TypeError) as error:
        raise UserError(f"config.model: {reason_of(error)}") from error


def moved(given: str, name: str) -> str:
    """Where a field of the gates lies that lay beside the sizes of a model, in one sentence."""
    place = f"{given.removesuffix(name)}gates.{name}"
    return f"{given}: fields of the gates have a section of their own: give {place}"


def claim_workdir(
    workdir: Path, config: ConfigDict, *, say: Callable[[str], None] = lambda line: None
) -> None:
    """Makes the run directory this config's: writes config.json, or checks the one there.

    A run that left neither a figure nor a checkpoint has nothing to lose, and gives way.

    Args:
      say: takes one line for the user where it does.

    Raises:
      UserError: the directory belongs to another config; every differing field is named.
    """
    make_workdir(workdir)
    if (workdir / FILE_NAME).exists():
        differing = differences(flatten(load_config(workdir)), flatten(config))
        if differing and _has_begun(workdir):
            raise UserError(
                f"{workdir} belongs to a run of another config: {'; '.join(differing)}; give "
                "another --workdir, or these values"
            )
        if differing:
            say(
                f"{workdir} held a run that never took a step, of another config: "
                f"{'; '.join(differing)}; it has this config now"
            )
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
    write_atomically(workdir / FILE_NAME, text)


def _has_begun(workdir: Path) -> bool:
    """Whether a run has left figures or checkpoints, whole or not."""
    figures, checkpoints = workdir / metrics.FILE_NAME, workdir / CHECKPOINTS
    if figures.exists() and figures.stat().st_size > 0:
        return True
    return checkpoints.exists() and any(checkpoints.iterdir())


def make_workdir(workdir: Path) -> None:
    """Makes a run directory unless it is there.

    Raises:
      UserError: it cannot be made or written, or begins with `~`, which commands expand.
    """
    path = local_path(workdir, "--workdir")
    if path != workdir:
        raise UserError(f"--workdir={workdir}: only commands expand ~: give {path}")
    made_directory(path, "--workdir")


def load_config(workdir: Path) -> ConfigDict:
    """The resolved config of a run directory.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    path = workdir / FILE_NAME
    try:
        return from_json(read_json(path, mend="restore it, or start again in an empty --workdir"))
    except FileNotFoundError:
        raise UserError(
            f"{workdir} holds no run ({FILE_NAME} is missing): train first, or correct --workdir"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:  # of ConfigDict: odd names
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read ({error}): restore it") from error


def from_json(value: Mapping[str, Any]) -> ConfigDict:
    """The config that was written as this value, with the types that its fields had.

    JSON has no tuples, and forgets of which type an optional field is that is unset. Fields that
    an earlier version wrote elsewhere are where they lie now.

    Raises:
      ValueError, TypeError, AttributeError: names that no config has.
    """
    return ConfigDict(_typed(_as_now(value)))


def _as_now(config: Mapping[str, Any]) -> dict[str, Any]:
    model = config.get("model")
    return {**config, "model": with_sections(model)} if isinstance(model, Mapping) else dict(config)


def _typed(value: Any, path: str = "") -> Any:
    if isinstance(value, Mapping):
        return {
            name: _typed(each, f"{path}.{name}" if path else name) for name, each in value.items()
        }
    if isinstance(value, list):
        return tuple(_typed(each) for each in value)
    kind = OPTIONAL.get(path)
    if kind is not None and (value is None or type(value) is kind):
        return FieldReference(value, field_type=kind)
    return value


def require_config_of(meta: Mapping[str, Any], config: ConfigDict, workdir: Path) -> None:
    """Raises UserError unless a checkpoint was trained by this config, which is a directory's.

    Fields that leave parameters and data as they would be may differ.
    """
    trained = meta.get("config")
    if not isinstance(trained, dict):
        return  # of a checkpoint that does not say
    differing = differences(flatten(_as_now(trained)), flatten(config.to_dict()))
    if differing:
        raise UserError(
            f"the config of {workdir} is not the one that its checkpoint of step {meta['step']} "
            f"was trained with ({FILE_NAME} is here, the checkpoint there): "
            f"{'; '.join(differing)}; restore {FILE_NAME} from a copy"
        )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names, lists and tuples alike as tuples."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, (list, tuple)) else value
    return flat


def differences(
    old: dict[str, Any], new: dict[str, Any], but: frozenset[str] = RESUMABLE
) -> list[str]:
    """One clause a field that differs between flat configs, `but` for those that may.

    Where token files lie, and whether they are verified, may differ too: the digests of their
    shards, kept with every checkpoint, say whether they are the same.
    """
    absent = object()
    source = old.get("data.source")
    if but and source == new.get("data.source") and source in WITH_DIGESTS:
        but |= {"data.path", "data.paths", "data.verify"}

    def show(value: Any) -> str:
        return "absent" if value is absent else shown(value)

    return [
        f"{name} is {show(old.get(name, absent))} there and {show(new.get(name, absent))} here"
        for name in sorted(old.keys() | new.keys())
        if name not in but and old.get(name, absent) != new.get(name, absent)
    ]
