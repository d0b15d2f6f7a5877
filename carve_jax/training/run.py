"""Building a run from its config, and restoring one, or its trained model, from its directory."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from carve_jax.accounting import parameter_shapes
from carve_jax.config import LMConfig
from carve_jax.data import DataPipeline, changed_facts, make_pipeline
from carve_jax.data.token_files.shard_header import sha256
from carve_jax.errors import UserError
from carve_jax.model import LanguageModel
from carve_jax.ops.gated_delta import resolve_implementation
from carve_jax.placement import state_shardings
from carve_jax.training.checkpoints.checkpoint import Checkpoints
from carve_jax.training.compiling import compiler_options
from carve_jax.training.guard import Guard
from carve_jax.training.loss import NO_SUMS, LossSums
from carve_jax.training.on_mesh import (
    OnMesh,
    make_run_mesh,
    one_device,
    share_of,
    with_shardings,
)
from carve_jax.training.optimizer import make_optimizer, make_schedule
from carve_jax.training.processes.messages import Say
from carve_jax.training.settings import (
    BatchSettings,
    Settings,
    StepSettings,
    make_model_config,
    read_settings,
    read_sizes,
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
from carve_jax.training.workdir import CHECKPOINTS, load_config, require_config_of


class Run(NamedTuple):
    """All that a config determines; nothing in it changes while training.

    Attributes:
      implementation: of the rule, that training runs.
      mesh: the devices it runs on; None for one device.
      state_shapes: the state's shapes and dtypes, and where each array lies.
    """

    settings: Settings
    model: LanguageModel
    implementation: str
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


class Start(NamedTuple):
    """Where a process takes a run up."""

    state: TrainState
    step: int
    tokens: int
    loss_sums: LossSums = NO_SUMS


def build(config: ConfigDict) -> Run:
    """Checks the config and makes model, data and step functions of it.

    Raises:
      UserError: a bad config or unusable data.
    """
    settings = read_settings(config)
    model = LanguageModel(settings.model)
    implementation = implementation_of(
        settings.model, settings.batch_size, settings.sequence_length
    )
    mesh = make_run_mesh(settings.mesh, settings.model, settings.rows, settings.sequence_length)
    pipeline = build_pipeline(settings, settings.model, *share_of(mesh))
    steps = shared_steps(settings.step_settings, mesh, implementation)
    return Run(settings, model, implementation, pipeline, mesh, *steps)


@functools.lru_cache(maxsize=4)
def shared_steps(settings: StepSettings, mesh: Mesh | None, implementation: str) -> Steps:
    """`build_steps`, for runs of one process that differ in nothing that is compiled.

    Args:
      implementation: that tracing will choose here and now; of the cache's key alone.
    """
    del implementation
    return build_steps(settings, mesh)


def build_steps(settings: StepSettings, mesh: Mesh | None) -> Steps:
    """The step functions of a run, whose devices need not be there to compile for them."""
    model = LanguageModel(settings.model)
    schedule = make_schedule(settings.optimizer, settings.steps)
    optimizer = make_optimizer(settings.optimizer, schedule)
    # Of each chunk of tokens a device has its own: with few, the head would be gathered too often.
    chunk = settings.loss_chunk * (1 if mesh is None else mesh.size // mesh.shape["tensor"])
    loss = make_loss(model, loss_chunk=chunk, z_loss=settings.z_loss)
    init = make_init(model, optimizer, settings.seed, mesh, settings.guard)
    options = compiler_options(mesh)
    shapes = jax.eval_shape(init)
    shardings = None if mesh is None else state_shardings(model.config, shapes, mesh)
    train_step = make_train_step(
        loss,
        optimizer,
        schedule,
        accumulate_steps=settings.optimizer.accumulate_steps,
        state_shardings=shardings,
        guard=settings.guard,
        with_norms=settings.log_norms,
        compiler_options=options,
    )

    def placed(function: Any) -> Any:
        return function if mesh is None else OnMesh(mesh, function)

    return Steps(
        state_shapes=with_shardings(shapes, shardings),
        init=init,
        train_step=placed(train_step),
        eval_sums=placed(jax.jit(loss, compiler_options=options)),
    )


def make_model(config: ConfigDict) -> LanguageModel:
    """The model of a config that need have no more than it and the sizes of its batches.

    Raises:
      UserError: a bad config, or an implementation by name that this machine cannot run.
    """
    model = make_model_config(config)
    implementation_of(model, *read_sizes(config))
    return LanguageModel(model)


def implementation_of(model: LMConfig, batch_size: int, sequence_length: int) -> str:
    """Name of the implementation of the rule that training runs, on batches of these sizes.

    Raises:
      UserError: it is named, and cannot run here.
    """
    sizes = {"B": batch_size, "T": sequence_length}
    sizes |= {"N": model.num_heads, "K": model.key_dim, "V": model.value_dim}
    try:
        return resolve_implementation(
            model.implementation,
            dtype=model.compute_dtype,
            sizes=sizes,
            content=model.content_lag > 0,
            content_lag=max(1, model.content_lag),
        )
    except NotImplementedError as error:
        raise UserError(f"config.model.implementation: {error}") from error


def build_pipeline(
    batches: BatchSettings, model: LMConfig, share: int = 0, shares: int = 1
) -> DataPipeline:
    """The data of a run, checked against its model's vocabulary.

    Args:
      batches: what they are made of.
      model: that reads them.
      share: which share of each batch's rows is made.
      shares: in a batch.

    Raises:
      UserError: unusable data, or more different tokens than the model knows.
    """
    pipeline = make_pipeline(
        batches.data,
        batch_size=batches.batch_size,
        sequence_length=batches.sequence_length,
        segment_alignment=model.segment_alignment,
        seed=batches.seed,
        process_index=share,
        process_count=shares,
    )
    if pipeline.vocab_size > model.vocab_size:
        raise UserError(
            f"config.model.vocab_size is {model.vocab_size}, but the data has "
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
    where = (
        one_device() if mesh is None else state_shardings(model.config, jax.eval_shape(init), mesh)
    )
    return jax.jit(init, out_shardings=where, compiler_options=compiler_options(mesh))


def saved_with(run: Run, tokens: int, loss_sums: LossSums) -> dict[str, Any]:
    """What a checkpoint says besides the state: tokens seen, the sums of the loss since the last
    line of the log, the config, and the data's facts."""
    tokenizer = run.pipeline.tokenizer
    return {
        "tokens": tokens,
        "loss_sums": [float(total).hex() for total in loss_sums],  # exact, and NaN too
        "config": dict(run.settings.plain),
        "data": run.pipeline.describe(),
        "tokenizer_sha256": None if tokenizer is None else sha256(tokenizer.to_json()),
    }


def loss_sums_of(meta: Mapping[str, Any]) -> LossSums:
    """The sums that a checkpoint was saved with; none of one that is older than they are."""
    saved = meta.get("loss_sums")
    return NO_SUMS if saved is None else LossSums(*np.array([float.fromhex(x) for x in saved]))


def restore_or_init(run: Run, checkpoints: Checkpoints, batches: Any, workdir: Path) -> Start:
    """Where to go on: at the newest usable checkpoint, or at the beginning of a new run.

    Raises:
      UserError: no checkpoint is usable, or config or data are not what the run was trained on.
    """
    facts = run.pipeline.describe()

    def same_run(meta: dict[str, Any]) -> None:
        require_config_of(meta, run.settings.plain, workdir)
        changed = changed_facts(meta["data"], facts)
        if changed:
            raise UserError(
                f"the data is not what this run was trained on ({', '.join(changed)} changed): go "
                "on with the same files and the same Python, or start again in an empty --workdir"
            )

    restored = checkpoints.restore(run.state_shapes, batches, accept=same_run)
    if restored is None:
        return Start(run.init(), 0, 0)
    meta = restored.meta
    return Start(restored.state, restored.step, meta["tokens"], loss_sums_of(meta))


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
            accept=lambda meta: require_config_of(meta, config.to_dict(), workdir),
        )
    if restored is None:
        raise UserError(f"{workdir} has no finished checkpoint yet: wait for one, or train on")
    tokenizer_sha256 = restored.meta.get("tokenizer_sha256")
    params = restored.state["params"]
    return Trained(config, model, params, restored.step, restored.seal, tokenizer_sha256)
