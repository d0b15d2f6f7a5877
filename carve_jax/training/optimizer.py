"""AdamW with the official recipe: warm-up, cosine to a tenth, global-norm clip, decay masks."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from carve_jax.mixers import MIXERS
from carve_jax.training.ranges import check_number

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


def make_schedule(optimizer: Mapping[str, Any], steps: int) -> optax.Schedule:
    """The learning rate by step (from 0): linear warm-up to the peak, then a cosine.

    Args:
      optimizer: the config's section; `peak_learning_rate`, `warmup_fraction` and
        `final_fraction` are read.
      steps: optimizer steps of the whole run.

    Raises:
      UserError: the warm-up would take the whole run, or more.
    """
    peak = optimizer["peak_learning_rate"]
    fraction = optimizer["warmup_fraction"]
    check_number("optimizer.warmup_fraction", fraction)
    warmup = max(1, round(fraction * steps))
    return optax.warmup_cosine_decay_schedule(
        init_value=peak / warmup,  # a first step at zero would be a step wasted
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=peak * optimizer["final_fraction"],
    )


def make_optimizer(
    optimizer: Mapping[str, Any], schedule: optax.Schedule
) -> optax.GradientTransformation:
    """AdamW behind a global-norm clip; `optimizer` is the config's section of that name."""
    return optax.chain(
        optax.clip_by_global_norm(optimizer["clip_norm"]),
        optax.adamw(
            schedule,
            b1=optimizer["beta1"],
            b2=optimizer["beta2"],
            weight_decay=optimizer["weight_decay"],
            mask=weight_decay_mask,
        ),
    )
