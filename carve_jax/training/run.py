"""From a config to the parts of a run, and from a run directory back to its trained model."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from ml_collections import ConfigDict

from carve_jax.accounting import parameter_shapes
from carve_jax.data import DataPipeline, Tokenizer, make_pipeline, tokenizer_from_json
from carve_jax.data.token_files.shard_header import sha256
from carve_jax.errors import UserError
from carve_jax.files import read_text, write_atomically
from carve_jax.model import LanguageModel
from carve_jax.ops.gated_delta import resolve_implementation
from carve_jax.placement import check_mesh, state_shardings
from carve_jax.sharding import make_mesh, row_share, spec
from carve_jax.training.checkpoints.checkpoint import Checkpoints
from carve_jax.training.guard import Guard
from carve_jax.training.optimizer import make_optimizer, make_schedule
from carve_jax.training.settings import (
    CHECKPOINTS,
    check_settings,
    check_sizes,
    load_config,
    make_model_config,
    require_config_of,
)
from carve_jax.training.step import (
    Batch,
    LossFn,
    StepMetrics,
    TrainState,
    init_state,
    make_loss,
    make_train_step,
)

TOKENIZER = "tokenizer.json"
Say = Callable[[str], None]


class Run(NamedTuple):
    """All that a config determines; nothing in it changes while training.

    Attributes:
      mesh: the devices it runs on; None for one device.
      state_shapes: the state's shapes and dtypes, and where each array lies.
    """

    config: ConfigDict
    model: LanguageModel
    pipeline: DataPipeline
    mesh: Mesh | None
    state_shapes: TrainState
    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
    eval_sums: LossFn


class Steps(NamedTuple):
    """What of a run needs neither data nor a directory; fields as in `Run`."""

    state_shapes: TrainState
    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
    eval_sums: LossFn


class Trained(NamedTuple):
    """A model with the parameters of one checkpoint.

    Attributes:
      seal: of the checkpoint (see `Restored`).
      tokenizer_sha256: of the tokenizer's JSON; None where the checkpoint does not say.
    """

    config: ConfigDict
    model: LanguageModel
    params: Any
    step: int
    seal: str
    tokenizer_sha256: str | None


def build(config: ConfigDict) -> Run:
    """Checks the config and makes model, data and step functions of it.

    Raises:
      UserError: a bad config or unusable data.
    """
    check_settings(config)
    model = make_model(config)
    mesh = make_run_mesh(config, model)
    pipeline = build_pipeline(config, model, *_share(mesh))
    return Run(config, model, pipeline, mesh, *build_steps(config, model, mesh))


def build_steps(config: ConfigDict, model: LanguageModel, mesh: Mesh | None) -> Steps:
    """The step functions of a run, whose devices need not be there to compile for them."""
    schedule = make_schedule(config.optimizer, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    # Of each chunk of tokens a device has its own: with few, the head would be gathered too often.
    chunk = config.loss_chunk * (1 if mesh is None else mesh.size // mesh.shape["tensor"])
    loss = make_loss(model, loss_chunk=chunk, z_loss=config.z_loss)
    guard = Guard.from_config(config.guard)
    init = make_init(model, optimizer, config.seed, mesh, guard)
    shapes = jax.eval_shape(init)
    shardings = None if mesh is None else state_shardings(model.config, shapes, mesh)
    train_step = make_train_step(
        loss,
        optimizer,
        schedule,
        accumulate_steps=config.optimizer.accumulate_steps,
        state_shardings=shardings,
        guard=guard,
        with_norms=config.log_norms_every > 0,
    )

    def placed(function: Any) -> Any:
        return function if mesh is None else OnMesh(mesh, function)

    return Steps(
        state_shapes=_with_shardings(shapes, shardings),
        init=init,
        train_step=placed(train_step),
        eval_sums=placed(jax.jit(loss)),
    )


def make_run_mesh(config: ConfigDict, model: LanguageModel) -> Mesh | None:
    """The mesh of `config.mesh`, checked against model and batch; None for one device.

    Raises:
      UserError: sizes that the devices, the processes, the model or the batch do not fit.
    """
    sizes = dict(config.mesh)
    if all(size == 1 for size in sizes.values()):
        if jax.process_count() > 1:
            raise UserError(
                f"config.mesh is one device, but the {jax.process_count()} processes have "
                f"{jax.device_count()}: give --config.mesh.data=-1 or --config.mesh.fsdp=-1, or "
                f"sizes whose product is {jax.device_count()}"
            )
        return None
    rows = config.batch_size // config.optimizer.accumulate_steps
    try:
        mesh = make_mesh(sizes)
        check_mesh(model.config, mesh.shape, rows, config.sequence_length)
        _share(mesh)
    except ValueError as error:
        raise UserError(f"config.mesh: {error}") from error
    return mesh


@functools.lru_cache(maxsize=4)
def _share(mesh: Mesh | None) -> tuple[int, int]:
    """Which share of a batch's rows this process makes, and of how many; see `row_share`."""
    if jax.process_count() == 1:
        return 0, 1
    assert mesh is not None, "several processes have more than one device"
    return row_share(mesh.devices, jax.process_index())


class OnMesh(NamedTuple):
    """A jitted function of (state or parameters, batch), with the batch laid over a mesh."""

    mesh: Mesh
    function: Any

    def __call__(self, tree: Any, batch: Batch) -> Any:
        """Runs it; `batch` is this process's share of the rows, on the host or anywhere."""
        rows, length = batch["tokens"].shape
        whole = (rows * _share(self.mesh)[1], length)
        with jax.set_mesh(self.mesh):
            return self.function(
                tree, jax.make_array_from_process_local_data(self._rows(), dict(batch), whole)
            )

    def lower(self, tree: Any, batch: Batch) -> jax.stages.Lowered:
        """Its program for these shapes (arrays or `jax.ShapeDtypeStruct`); nothing runs."""

        def place(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._rows())

        with jax.set_mesh(self.mesh):
            return self.function.lower(tree, jax.tree.map(place, dict(batch)))

    def _rows(self) -> NamedSharding:
        return NamedSharding(self.mesh, spec("batch", "length"))


def _with_shardings(shapes: TrainState, shardings: Any) -> TrainState:
    if shardings is None:
        shardings = jax.tree.map(lambda _: _one_device(), shapes)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def _one_device() -> SingleDeviceSharding:
    return SingleDeviceSharding(jax.devices()[0])


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
      UserError: it is named, and cannot run here; or the config lacks the sizes of a batch.
    """
    check_sizes(config)
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


def build_pipeline(
    config: ConfigDict, model: LanguageModel, share: int = 0, shares: int = 1
) -> DataPipeline:
    """The data of a config, checked against its model's vocabulary.

    Args:
      config: of a run.
      model: made of it.
      share: which share of each batch's rows is made.
      shares: in a batch.

    Raises:
      UserError: unusable data, or more different tokens than the model knows.
    """
    pipeline = make_pipeline(
        config.data,
        batch_size=config.batch_size,
        sequence_length=config.sequence_length,
        segment_alignment=model.config.segment_alignment,
        seed=config.seed,
        process_index=share,
        process_count=shares,
    )
    if pipeline.vocab_size > model.config.vocab_size:
        raise UserError(
            f"config.model.vocab_size is {model.config.vocab_size}, but the data has "
            f"{pipeline.vocab_size} different tokens: set at least that many"
        )
    return pipeline


def make_init(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh | None = None,
    guard: Guard | None = None,
) -> Callable[[], TrainState]:
    """A jitted function that gives the state before the first step, on the mesh or one device.

    No device ever holds all of a state that a mesh cuts. The values do not depend on the mesh.
    """

    def init() -> TrainState:
        tokens = jnp.zeros((1, model.config.segment_alignment), jnp.int32)
        return init_state(model, optimizer, jax.random.key(seed), tokens, guard)

    # Placed as a restored state is, so that a run and its continuation are one program.
    if mesh is None:
        return jax.jit(init, out_shardings=_one_device())
    return jax.jit(init, out_shardings=state_shardings(model.config, jax.eval_shape(init), mesh))


def load_trained(
    workdir: Path, *, step: int | Literal["best"] | None = None, say: Say = print
) -> Trained:
    """The model of a run directory with the parameters of its newest checkpoint, or of `step`.

    Touches nothing in the directory, so the run may still be going on. Nothing but the parameters
    is read, onto one device.

    Args:
      step: a number, or "best" for the lowest held-out loss.

    Raises:
      UserError: no run there, or no usable checkpoint, or a config.json that is not the
        checkpoint's.
    """
    config = load_config(workdir)
    model = make_model(config)
    like = {"params": parameter_shapes(model.config)}
    with Checkpoints(workdir / CHECKPOINTS, say=say, read_only=True) as checkpoints:
        number = checkpoints.best_step() if step == "best" else step
        restored = checkpoints.restore(
            like,
            step=number,
            partial=True,
            accept=lambda meta: require_config_of(meta, config, workdir),
        )
    if restored is None:
        raise UserError(f"{workdir} has no finished checkpoint yet: wait for one, or train on")
    tokenizer_sha256 = restored.meta.get("tokenizer_sha256")
    params = restored.state["params"]
    return Trained(config, model, params, restored.step, restored.seal, tokenizer_sha256)


def save_tokenizer(workdir: Path, tokenizer: Tokenizer | None) -> None:
    """Leaves the tokenizer beside the checkpoints, so that a prompt needs no data set.

    Without one, none stays there of a run that never began.
    """
    if tokenizer is None:
        (workdir / TOKENIZER).unlink(missing_ok=True)
    else:
        write_atomically(workdir / TOKENIZER, tokenizer.to_json())


def load_tokenizer(workdir: Path, expected_sha256: str | None = None) -> Tokenizer:
    """The tokenizer of a run directory.

    Args:
      workdir: the directory.
      expected_sha256: of the JSON, as the checkpoint says; None where it does not.

    Raises:
      UserError: its data has none (a synthetic task), or it is not the one it was trained with.
    """
    path = workdir / TOKENIZER
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise UserError(f"{workdir} was not trained on text: it has no {TOKENIZER}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it from a copy") from error
    if expected_sha256 not in (None, sha256(text)):
        raise UserError(
            f"{path} is not the tokenizer that the checkpoint was trained with: restore it from a "
            "copy"
        )
    return tokenizer_from_json(text)
