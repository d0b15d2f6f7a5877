"""AdamW with the official recipe: warm-up, cosine to a tenth, global-norm clip, decay masks."""

import dataclasses
from typing import Any

import jax
import optax

from carve_jax.mixers import MIXERS
from carve_jax.ranges import check_number

# What sets a time scale, an offset or a gain is not pulled towards zero; matrices are.
UNDECAYED = frozenset({"bias", "scale"}).union(*(entry.undecayed for entry in MIXERS.values()))


def leaf_name(path: tuple[Any, ...]) -> str:
    """The last key of a tree path, such as "kernel"."""
    return str(getattr(path[-1], "key", path[-1]))


def weight_decay_mask(params: Any) -> Any:
    """A tree like `params`: True where weight decay applies (not to `UNDECAYED` nor `…_bias`)."""

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        name = leaf_name(path)
        return name not in UNDECAYED and not name.endswith("_bias")

    return jax.tree_util.tree_map_with_path(decayed, params)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The config section `optimizer`.

    Attributes:
      peak_learning_rate: where the warm-up ends.
      warmup_fraction: share of the steps, linear.
      final_fraction: of the peak, where the cosine ends.
      weight_decay: see `weight_decay_mask`.
      beta1, beta2: of Adam's moments.
      clip_norm: most that the global norm of a gradient may be.
      accumulate_steps: parts that a batch is taken in, to save memory.
      content_up_lr_factor: of the learning rate, for the content gate's P_up alone.

    Raises:
      UserError: a value out of range.
    """

    peak_learning_rate: float
    warmup_fraction: float
    final_fraction: float
    weight_decay: float
    beta1: float
    beta2: float
    clip_norm: float
    accumulate_steps: int
    content_up_lr_factor: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_number(f"optimizer.{field.name}", getattr(self, field.name))


def make_schedule(optimizer: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate by step (from 0): linear warm-up to the peak, then a cosine.

    Args:
      optimizer: of which the peak and the fractions are read.
      steps: optimizer steps of the whole run.
    """
    peak = optimizer.peak_learning_rate
    warmup = max(1, round(optimizer.warmup_fraction * steps))
    return optax.warmup_cosine_decay_schedule(
        init_value=peak / warmup,  # a first step at zero would be a step wasted
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=peak * optimizer.final_fraction,
    )


def make_optimizer(
    optimizer: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """AdamW behind a global-norm clip; P_up's learning rate times its factor."""
    parts = [
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.adamw(
            schedule,
            b1=optimizer.beta1,
            b2=optimizer.beta2,
            weight_decay=optimizer.weight_decay,
            mask=weight_decay_mask,
        ),
    ]
    if optimizer.content_up_lr_factor != 1.0:
        parts.append(_scale_content_up(optimizer.content_up_lr_factor))
    return optax.chain(*parts)


def _scale_content_up(factor: float) -> optax.GradientTransformation:
    """Updates of P_up, weight decay included, times the factor."""

    def scale(path: tuple[Any, ...], update: Any) -> Any:
        return factor * update if leaf_name(path) == "content_up" else update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))
