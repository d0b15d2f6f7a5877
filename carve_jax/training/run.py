"""From a config to the parts of a run, and from a run directory back to its trained model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from carve_jax.errors import UserError
from carve_jax.model import LanguageModel
from carve_jax.ops.gated_delta import resolve_implementation
from carve_jax.training.checkpoint import Checkpoints
from carve_jax.training.data import DataPipeline, Tokenizer, make_pipeline, tokenizer_from_json
from carve_jax.training.metrics import write_atomically
from carve_jax.training.optimizer import make_optimizer, make_schedule
from carve_jax.training.settings import check_settings, load_config, make_model_config
from carve_jax.training.step import (
    Batch,
    LossFn,
    StepMetrics,
    TrainState,
    init_state,
    make_loss,
    make_train_step,
)

CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer.json"
Say = Callable[[str], None]


class Run(NamedTuple):
    """All that a config determines; nothing in it changes while training."""

    config: ConfigDict
    model: LanguageModel
    pipeline: DataPipeline
    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
    eval_sums: LossFn


class Trained(NamedTuple):
    """A model with the parameters of one checkpoint."""

    config: ConfigDict
    model: LanguageModel
    params: Any
    step: int


def build(config: ConfigDict) -> Run:
    """Checks the config and makes model, data and step functions of it.

    Raises:
      UserError: a bad config or unusable data.
    """
    check_settings(config)
    model = make_model(config)
    pipeline = build_pipeline(config, model)
    schedule = make_schedule(config.optimizer, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    loss = make_loss(model, loss_chunk=config.loss_chunk, z_loss=config.z_loss)
    return Run(
        config=config,
        model=model,
        pipeline=pipeline,
        init=make_init(model, optimizer, config.seed),
        train_step=make_train_step(
            loss, optimizer, schedule, accumulate_steps=config.optimizer.accumulate_steps
        ),
        eval_sums=jax.jit(loss),
    )


def make_model(config: ConfigDict) -> LanguageModel:
    """The model, whose rule can run here.

    Raises:
      UserError: a bad config, or an implementation by name that this machine cannot run.
    """
    model = LanguageModel(make_model_config(config))
    implementation_of(config, model)
    return model


def implementation_of(config: ConfigDict, model: LanguageModel) -> str:
    """Name of the implementation of the rule that training runs.

    Raises:
      UserError: it is named, and cannot run here.
    """
    sizes = {"B": config.batch_size, "T": config.sequence_length}
    sizes |= {"N": model.config.num_heads, "K": model.config.key_dim, "V": model.config.value_dim}
    try:
        return resolve_implementation(
            model.config.implementation,
            dtype=model.config.compute_dtype,
            sizes=sizes,
            content=model.config.has_content_gate,
        )
    except NotImplementedError as error:
        raise UserError(f"config.model.implementation: {error}") from error


def build_pipeline(config: ConfigDict, model: LanguageModel) -> DataPipeline:
    """The data of a config, checked against its model's vocabulary.

    Raises:
      UserError: unusable data, or more different tokens than the model knows.
    """
    pipeline = make_pipeline(
        config.data,
        batch_size=config.batch_size,
        sequence_length=config.sequence_length,
        segment_alignment=model.config.segment_alignment,
        seed=config.seed,
    )
    if pipeline.vocab_size > model.config.vocab_size:
        raise UserError(
            f"config.model.vocab_size is {model.config.vocab_size}, but the data has "
            f"{pipeline.vocab_size} different tokens: set at least that many"
        )
    return pipeline


def make_init(
    model: LanguageModel, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[], TrainState]:
    """A jitted function that gives the state before the first step, on the default device."""

    def init() -> TrainState:
        tokens = jnp.zeros((1, model.config.segment_alignment), jnp.int32)
        return init_state(model, optimizer, jax.random.key(seed), tokens)

    # Placed as a restored state is, so that a run and its continuation are one program.
    return jax.jit(init, out_shardings=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def load_trained(workdir: Path, *, step: int | None = None, say: Say = print) -> Trained:
    """The model of a run directory with the parameters of its newest checkpoint, or of `step`.

    Touches nothing in the directory, so the run may still be going on.

    Raises:
      UserError: no run there, or no usable checkpoint.
    """
    config = load_config(workdir)
    model = make_model(config)
    schedule = make_schedule(config.optimizer, config.steps)
    init = make_init(model, make_optimizer(config.optimizer, schedule), config.seed)
    with Checkpoints(workdir / CHECKPOINTS, say=say, read_only=True) as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(init), step=step)
    if restored is None:
        raise UserError(f"{workdir} has no finished checkpoint yet: wait for one, or train on")
    return Trained(config, model, restored.state.params, restored.step)


def save_tokenizer(workdir: Path, tokenizer: Tokenizer | None) -> None:
    """Leaves the tokenizer beside the checkpoints, so that a prompt needs no data set."""
    if tokenizer is not None:
        write_atomically(workdir / TOKENIZER, tokenizer.to_json())


def load_tokenizer(workdir: Path) -> Tokenizer:
    """The tokenizer of a run directory.

    Raises:
      UserError: its data has none ("mqar").
    """
    path = workdir / TOKENIZER
    if not path.exists():
        raise UserError(f"{workdir} was not trained on text: it has no {TOKENIZER}")
    return tokenizer_from_json(path.read_text())
