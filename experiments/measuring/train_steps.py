"""A whole train step as `experiments.train` makes it, at any sizes, to be compiled or timed."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from carve_jax.model import LanguageModel
from carve_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from carve_jax.training.run import make_init
from carve_jax.training.settings import make_model_config
from carve_jax.training.step import TrainState, make_loss, make_train_step
from configs.base import get_config

LAYER_SIZES = {  # of gdn2_1.3B
    "vocab_size": 32000, "d_model": 2304, "layers": 18, "mlp_dim": 6208, "num_heads": 16,
    "key_dim": 128, "value_dim": 128,
}  # fmt: skip


class TrainStep(NamedTuple):
    """What a step is made of.

    Attributes:
      model: that is trained.
      init: gives the first state.
      step: (state, batch) -> (state, metrics), jitted; it donates the state.
    """

    model: LanguageModel
    init: Callable[[], TrainState]
    step: Any


def make_step(fields: Mapping[str, Any]) -> TrainStep:
    """The step of the base config with these fields of its section `model`."""
    config = get_config()
    config.model.update(fields)
    model = LanguageModel(make_model_config(config))
    recipe = OptimizerConfig(**config.optimizer)
    schedule = make_schedule(recipe, config.steps)
    optimizer = make_optimizer(recipe, schedule)
    loss = make_loss(model, loss_chunk=config.loss_chunk, z_loss=config.z_loss)
    init = make_init(model, optimizer, config.seed)
    return TrainStep(model, init, make_train_step(loss, optimizer, schedule))
