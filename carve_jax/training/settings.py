"""The config of a run: parsed once, checked before anything is built, and held against others."""

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints

from ml_collections import ConfigDict, FieldReference

from carve_jax.config import FORMER, LMConfig, with_sections
from carve_jax.data import DataConfig
from carve_jax.errors import UserError
from carve_jax.files import reason_of, shown
from carve_jax.mixers.changes import SECTIONS as MODEL_SECTIONS
from carve_jax.ranges import OPTIONAL as OPTIONAL_COUNT
from carve_jax.ranges import OPTIONAL_NUMBER, TABLE, check_number, check_numbers
from carve_jax.sharding import AXES
from carve_jax.training.guard import Guard
from carve_jax.training.optimizer import OptimizerConfig

WITH_DIGESTS = ("token_files", "mixture")

# What a run may change when it is resumed: all that leaves parameters and data as they would be.
RESUMABLE = frozenset(
    {
        "eval_every", "log_every", "checkpoint_every", "keep_checkpoints", "sample_prompt",
        "sample_tokens", "mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence",
        "keep_every", "keep_best", "log_norms_every", "watchdog_seconds", "profile_steps",
        "guard.loss_factor", "guard.grad_factor", "guard.action", "guard.limit",  # from there on
    }
)  # fmt: skip


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

RANGES = {
    **{
        name: OPTIONAL_COUNT if kind is int else OPTIONAL_NUMBER
        for name, kind in OPTIONAL.items()
        if kind in (int, float)
    },
    **TABLE,
}
"""The range of every number of a config, those of gates and layer included."""


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """What the batches of a run are made of.

    Attributes:
      data: the section.
      batch_size: rows, of all processes together.
      sequence_length: tokens of a row.
      seed: of parameters and training order.
    """

    data: DataConfig
    batch_size: int
    sequence_length: int
    seed: int


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What the step functions of a run are made of, hashable; fields as in `Settings`.

    Attributes:
      log_norms: whether steps measure the norms of every layer.
    """

    model: LMConfig
    optimizer: OptimizerConfig
    guard: Guard
    steps: int
    seed: int
    z_loss: float
    loss_chunk: int
    log_norms: bool


@dataclasses.dataclass(frozen=True)
class Settings(BatchSettings):
    """A whole config, checked; `configs/base.py` says what each field is.

    Attributes:
      model, data, optimizer, guard: the sections.
      mesh: how many devices along each axis (`sharding.AXES`); -1: all that are left.
      plain: all of it as plain values, as config.json and the checkpoints keep it.
    """

    model: LMConfig
    optimizer: OptimizerConfig
    mesh: Mapping[str, int]
    guard: Guard
    steps: int
    z_loss: float
    loss_chunk: int
    eval_every: int
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    keep_every: int
    keep_best: int
    log_norms_every: int
    profile_steps: tuple[int, int]
    watchdog_seconds: float
    sample_prompt: str
    sample_tokens: int
    plain: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Rows that are taken at a time, over all devices."""
        return self.batch_size // self.optimizer.accumulate_steps

    @property
    def step_settings(self) -> StepSettings:
        """What the step functions are made of."""
        same = {name: getattr(self, name) for name in _names(StepSettings) if name != "log_norms"}
        return StepSettings(**same, log_norms=self.log_norms_every > 0)


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


SECTIONS = ("model", "data", "optimizer", "mesh", "guard")
LATER_OPTIMIZER_FIELDS = {
    field.name: field.default
    for field in dataclasses.fields(OptimizerConfig)
    if field.default is not dataclasses.MISSING
}
"""Fields of the optimizer that earlier versions had not, with what they did."""

FIELDS = tuple(name for name in _names(Settings) if name not in (*SECTIONS, "plain"))


def read_settings(config: ConfigDict) -> Settings:
    """The settings that a config stands for.

    Raises:
      UserError: a field that is missing, unknown or out of range.
    """
    check_names(config.keys(), (*SECTIONS, *FIELDS), "config")
    plain = config.to_dict()
    for name in SECTIONS:
        section_of(config, name)
    check_names(plain["optimizer"], _names(OptimizerConfig), "config.optimizer")
    check_names(plain["mesh"], AXES, "config.mesh")
    check_names(plain["guard"], _names(Guard), "config.guard")
    check_numbers(plain, table=RANGES)
    _check_reports(plain)
    optimizer = OptimizerConfig(**plain["optimizer"])
    if plain["batch_size"] % optimizer.accumulate_steps:
        raise UserError(
            f"config.batch_size is {plain['batch_size']}, but must be a multiple of "
            f"config.optimizer.accumulate_steps, which is {optimizer.accumulate_steps}"
        )
    fields = {name: plain[name] for name in FIELDS}
    return Settings(
        **fields | {"profile_steps": tuple(plain["profile_steps"])},
        model=make_model_config(config),
        data=_read_data(config),
        optimizer=optimizer,
        mesh=plain["mesh"],
        guard=Guard(**plain["guard"]),
        plain=plain,
    )


def read_batches(config: ConfigDict) -> BatchSettings:
    """Reads the batches' settings, all that a trained model's config need hold beside its model.

    Raises:
      UserError: a field of them that is missing or out of range.
    """
    batch_size, sequence_length = read_sizes(config)
    return BatchSettings(_read_data(config), batch_size, sequence_length, _number(config, "seed"))


def read_sizes(config: ConfigDict) -> tuple[int, int]:
    """Rows and tokens of a row of a config's batches.

    Raises:
      UserError: it does not say.
    """
    return _number(config, "batch_size"), _number(config, "sequence_length")


def _read_data(config: ConfigDict) -> DataConfig:
    section = section_of(config, "data").to_dict()
    try:
        return DataConfig.from_config(section)
    except TypeError as error:
        raise UserError(f"config.data: {reason_of(error)}") from error


def _number(config: ConfigDict, name: str) -> int:
    if name not in config:
        raise UserError(f"config lacks {name}: start from configs/base.py")
    check_number(name, config[name])
    return config[name]


def _check_reports(plain: Mapping[str, Any]) -> None:
    """Raises UserError for a field, out of range, of what a run keeps and says."""
    steps = plain["profile_steps"]
    pair = isinstance(steps, (list, tuple)) and [type(step) for step in steps] == [int, int]
    if not pair or (tuple(steps) != (0, 0) and not 1 <= steps[0] <= steps[1]):
        raise UserError(
            f"config.profile_steps is {shown(steps)}, but must be the first and the last step to "
            "trace, such as (10, 12), or (0, 0) for none"
        )
    prompt = plain["sample_prompt"]
    if not isinstance(prompt, str):
        raise UserError(f"config.sample_prompt is {shown(prompt)}, but must be text")
    often, seldom = sorted((plain["eval_every"], plain["checkpoint_every"]))
    if plain["keep_best"] and seldom % often:
        raise UserError(
            "config.keep_best needs checkpoints that were evaluated at their step, but "
            f"config.checkpoint_every is {plain['checkpoint_every']} and config.eval_every is "
            f"{plain['eval_every']}: make one a multiple of the other"
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
    check_numbers(section, "model.", RANGES)
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


def from_json(value: Mapping[str, Any]) -> ConfigDict:
    """The config that was written as this value, with the types that its fields had.

    JSON has no tuples, and forgets of which type an optional field is that is unset. Fields that
    an earlier version wrote elsewhere are where they lie now.

    Raises:
      ValueError, TypeError, AttributeError: names that no config has.
    """
    return ConfigDict(_typed(as_now(value)))


def as_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config, each field where it lies now, whichever version wrote it."""
    now, model, optimizer = dict(config), config.get("model"), config.get("optimizer")
    if isinstance(model, Mapping):
        now["model"] = with_sections(model)
    if isinstance(optimizer, Mapping):  # what the optimizer did before these fields were there
        now["optimizer"] = LATER_OPTIMIZER_FIELDS | dict(optimizer)
    return now


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
    """One clause for each field that differs between flat configs, `but` for those that may.

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
