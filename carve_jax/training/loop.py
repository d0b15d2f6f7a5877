"""The main loop: train a run from its config, and leave everything in its directory."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from tqdm import tqdm

from carve_jax.data import Tokenizer, changed_facts
from carve_jax.errors import UserError
from carve_jax.files import held
from carve_jax.generate import generate
from carve_jax.model import count_parameters
from carve_jax.placement import pipeline_bubble
from carve_jax.training.checkpoints.checkpoint import Checkpoints
from carve_jax.training.processes.agreement import (
    for_all,
    held_by_first,
    is_first,
    require_same,
    require_shared,
    together,
)
from carve_jax.training.reports import plot, provenance
from carve_jax.training.reports.metrics import read_metrics
from carve_jax.training.run import (
    Run,
    Say,
    build,
    implementation_of,
    save_tokenizer,
)
from carve_jax.training.session import Start, take_steps
from carve_jax.training.settings import (
    CHECKPOINTS,
    claim_workdir,
    flatten,
    make_workdir,
    require_config_of,
)
from carve_jax.training.step import TrainState

LOCK = ".lock"
"""In a run directory: locked as long as a process trains there."""


def say_above_bar(line: str) -> None:
    """Prints a line above the progress bar, at once even where stdout is a file."""
    tqdm.write(line)
    sys.stdout.flush()


def train(config: ConfigDict, workdir: Path, *, say: Say = say_above_bar) -> TrainState:
    """Trains until `config.steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
      say: takes one line for the user.

    Raises:
      UserError: a bad config, another config's directory, or one that another run has; no usable
        data or checkpoint, no space.
      TrainingDiverged: the loss or a gradient is NaN or infinite.
      Interrupted: ctrl-C or SIGTERM; the state has been saved.
    """
    agree(config, workdir)
    with together():
        run = build(config)
    require_same("the data", flatten(run.pipeline.describe()), "give all the same files and Python")
    speak = for_all(say)
    with alone(workdir, speak):
        return _train(run, workdir, say)


def _train(run: Run, workdir: Path, say: Say) -> TrainState:
    config, speak = run.config, for_all(say)
    claim(workdir, run, speak)
    with Checkpoints(
        workdir / CHECKPOINTS,
        keep=config.keep_checkpoints,
        keep_every=config.keep_every,
        keep_best=config.keep_best,
        say=speak,
    ) as checkpoints:
        batches = run.pipeline.train_iterator()
        start = restore_or_init(run, checkpoints, batches, workdir)
        facts = describe(run, start.state, start.step)
        if is_first():
            provenance.write_provenance(workdir, facts, speak)
        if facts.get("pipeline_bubble"):
            speak(
                f"CARVE's pipeline along the sequence leaves {facts['pipeline_bubble']:.0%} of the "
                "time of its rule idle; the more rows a device has, the less"
            )
        speak(f"training from step {start.step} to {config.steps}; results go to {workdir}")
        state = take_steps(run, checkpoints, batches, start, workdir, say)
    if is_first():
        provenance.add_provenance(workdir, {"device_peak_bytes": provenance.device_peak_bytes()})
    finish(run, workdir, state, speak)
    return state


@contextlib.contextmanager
def alone(workdir: Path, say: Say) -> Iterator[None]:
    """Holds the run directory, which is made, against every other run.

    Raises:
      UserError: it cannot be made, or another run has it.
    """
    with contextlib.ExitStack() as stack:
        with together():
            if is_first():
                make_workdir(workdir)
                try:
                    stack.enter_context(held(workdir / LOCK, str(workdir), say=say))
                except OSError as error:
                    raise UserError(
                        f"--workdir {workdir} cannot be written ({error.strerror}): give another"
                    ) from error
        yield


def agree(config: ConfigDict, workdir: Path) -> None:
    """Raises AgreedError unless all processes were started alike."""
    if jax.process_count() == 1:
        return
    code = {"--workdir": str(workdir.absolute()), "code": provenance.describe_code()}
    facts = flatten(config.to_dict() | code)
    require_same("the config", facts, "start all processes with the same command and code")


def claim(workdir: Path, run: Run, say: Say) -> None:
    """The first process makes the run directory; the others see that they share it.

    Raises:
      UserError: another config's directory, or one of this machine alone.
    """
    with together():
        if is_first():
            claim_workdir(workdir, run.config, say=say)
            save_tokenizer(workdir, run.pipeline.tokenizer)
    require_shared(workdir)


def restore_or_init(run: Run, checkpoints: Checkpoints, batches: Any, workdir: Path) -> Start:
    """Where to go on: at the newest usable checkpoint, or at the beginning of a new run.

    Raises:
      UserError: no checkpoint is usable, or config or data are not what the run was trained on.
    """
    facts = run.pipeline.describe()

    def same_run(meta: dict[str, Any]) -> None:
        require_config_of(meta, run.config, workdir)
        changed = changed_facts(meta["data"], facts)
        if changed:
            raise UserError(
                f"the data is not what this run was trained on ({', '.join(changed)} changed): go "
                "on with the same files and the same Python, or start again in an empty --workdir"
            )

    restored = checkpoints.restore(run.state_shapes, batches, accept=same_run)
    if restored is None:
        return Start(run.init(), 0, 0)
    return Start(restored.state, restored.step, restored.meta["tokens"])


def describe(run: Run, state: TrainState, start: int) -> dict[str, Any]:
    """Facts for provenance.json."""
    return {
        **provenance.describe_environment(),
        "implementation": implementation_of(run.config, run.model),
        "start_step": start,
        **describe_mesh(run),
        "parameters": count_parameters(state.params),
        "data": run.pipeline.describe(),
    }


def describe_mesh(run: Run) -> dict[str, Any]:
    """Processes, mesh, and the share of time that it leaves CARVE's layers idle (see `bubble`)."""
    facts: dict[str, Any] = {"processes": jax.process_count(), "mesh": None}
    if run.mesh is not None:
        rows = run.config.batch_size // run.config.optimizer.accumulate_steps
        facts["mesh"] = dict(run.mesh.shape)
        facts["pipeline_bubble"] = pipeline_bubble(run.model.config, run.mesh.shape, rows)
    return facts


def finish(run: Run, workdir: Path, state: TrainState, say: Say) -> None:
    """Draws the loss curve and, if the data is text, prints a sample; in the first process."""
    tokenizer = None if run.config.sample_tokens == 0 else run.pipeline.tokenizer
    params = None if tokenizer is None else held_by_first(state.params)
    with together():
        if not is_first():
            return
        say(f"loss curve: {plot.plot_loss(read_metrics(workdir, say), workdir / plot.FILE_NAME)}")
        if tokenizer is not None:
            say(f"sample:\n{sample(run, params, tokenizer)}")


def sample(run: Run, params: Any, tokenizer: Tokenizer) -> str:
    """The config's prompt, continued."""
    prompt = run.config.sample_prompt
    tokens = generate(
        run.model,
        params,
        jnp.asarray([[tokenizer.separator, *tokenizer.encode(prompt)]], jnp.int32),
        max_new_tokens=run.config.sample_tokens,
        rng=jax.random.key(run.config.seed),
        temperature=0.8,
        stop_tokens=(tokenizer.separator,),
    )
    return prompt + tokenizer.decode(tokens[0])
