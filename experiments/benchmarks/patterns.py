"""Models of random weights by their pattern, for the suites that decode, evaluate or probe them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from carve_jax.config import LMConfig
from carve_jax.errors import UserError
from carve_jax.model import LanguageModel
from experiments.benchmarks.parts import kept_parts

PROMPT = 16  # tokens; lengths are above it


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which models, at which lengths.

    Attributes:
      patterns: of mixers, joined by "+".
      lengths: tokens in a row at which they are looked at; rising.
      most_of_attention: as far as full attention decodes.
      model: fields of `LMConfig`.
    """

    patterns: tuple[str, ...] = ("carve", "gdn2", "mamba2", "mamba3", "carve+swa", "attention")
    lengths: tuple[int, ...] = (1_000, 10_000, 100_000)
    most_of_attention: int = 10_000
    model: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "vocab_size": 257,
            "d_model": 64,
            "layers": 2,
            "mlp_dim": 128,
            "num_heads": 2,
            "key_dim": 32,
            "value_dim": 32,
            "window": 256,
        }
    )


def make_plan(lengths: list[str], only: tuple[str, ...], plan: Plan = Plan()) -> Plan:
    """The plan of the command's flags, which change this one; no lengths leave its own.

    Raises:
      UserError: lengths that are no rising numbers beyond the prompt's, or no such pattern.
    """
    try:
        numbers = tuple(int(text) for text in lengths or plan.lengths)
    except ValueError:
        numbers = ()
    if not numbers or list(numbers) != sorted(set(numbers)) or numbers[0] <= PROMPT:
        raise UserError(
            f"--tokens={','.join(lengths)}: give rising whole numbers above {PROMPT}, such as "
            f"{','.join(map(str, plan.lengths))}"
        )
    return dataclasses.replace(plan, lengths=numbers, patterns=kept_parts(only, plan.patterns))


def random_model(name: str, plan: Plan) -> tuple[LanguageModel, Any]:
    """The model of a pattern, and parameters as they are before training."""
    pattern = tuple(name.split("+"))
    config = LMConfig(**{"layers": len(pattern), **plan.model, "pattern": pattern})
    model = LanguageModel(config)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
