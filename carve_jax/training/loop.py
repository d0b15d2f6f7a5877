"""The main loop: train a run from its config, and leave everything in its directory."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from tqdm import tqdm

from carve_jax.errors import UserError
from carve_jax.evaluation.perplexity import perplexity
from carve_jax.generate import generate
from carve_jax.model import count_parameters
from carve_jax.training import plot, provenance
from carve_jax.training.checkpoint import Checkpoints
from carve_jax.training.metrics import MetricsLog, read_metrics
from carve_jax.training.recorder import Recorder
from carve_jax.training.run import CHECKPOINTS, Run, Say, build, implementation_of, save_tokenizer
from carve_jax.training.settings import claim_workdir
from carve_jax.training.step import TrainState
from carve_jax.training.stopping import Interrupted, StopRequests


def say_above_bar(line: str) -> None:
    """Prints a line above the progress bar, at once even where stdout is a file."""
    tqdm.write(line)
    sys.stdout.flush()


def train(config: ConfigDict, workdir: Path, *, say: Say = say_above_bar) -> TrainState:
    """Trains until `config.steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
      say: takes one line for the user.

    Raises:
      UserError: a bad config, another config's directory, no usable data or checkpoint, no space.
      TrainingDiverged: the loss or a gradient is NaN or infinite.
      Interrupted: ctrl-C or SIGTERM; the state has been saved.
    """
    run = build(config)
    claim_workdir(workdir, config)
    save_tokenizer(workdir, run.pipeline.tokenizer)
    directory = workdir / CHECKPOINTS
    with Checkpoints(directory, keep=config.keep_checkpoints, say=say) as checkpoints:
        batches = run.pipeline.train_iterator()
        state, start, tokens = restore_or_init(run, checkpoints, batches)
        provenance.write_provenance(workdir, describe(run, state, start))
        say(f"training from step {start} to {config.steps}; results go to {workdir}")
        with (
            StopRequests() as stop,
            MetricsLog(workdir, start) as log,
            tqdm(total=config.steps, initial=start, unit="step", disable=None) as bar,
        ):
            recorder = Recorder(log, bar, config.log_every, tokens, checkpoints.last_good)
            for step in range(start + 1, config.steps + 1):
                state, metrics = run.train_step(state, next(batches))
                recorder.add(step, metrics)
                last = step == config.steps
                if last or step % config.eval_every == 0:
                    recorder.settle(evaluate(run, state, step, say))
                if last or step % config.checkpoint_every == 0 or stop.received:
                    recorder.settle()  # nothing is saved before it is known to be finite
                    checkpoints.save(step, state, batches, saved_with(run, recorder.tokens))
                if stop.received and not last:
                    checkpoints.wait()
                    raise Interrupted(stop.received, checkpoints.last_good())
    finish(run, workdir, state, say)
    return state


def saved_with(run: Run, tokens: int) -> dict[str, Any]:
    """What a checkpoint says besides the state: tokens seen, the config, and the data's facts."""
    return {"tokens": tokens, "config": run.config.to_dict(), "data": run.pipeline.describe()}


def restore_or_init(
    run: Run, checkpoints: Checkpoints, batches: Any
) -> tuple[TrainState, int, int]:
    """State, steps done and tokens seen: of the newest usable checkpoint, or of a new run.

    Raises:
      UserError: no checkpoint is usable, or the data is not what the run was trained on.
    """
    restored = checkpoints.restore(jax.eval_shape(run.init), batches)
    if restored is None:
        return run.init(), 0, 0
    facts = run.pipeline.describe()
    changed = [name for name, value in restored.meta["data"].items() if facts.get(name) != value]
    if changed:
        raise UserError(
            f"the data is not what this run was trained on ({', '.join(changed)} changed): go on "
            "with the same files and the same Python, or start again in an empty --workdir"
        )
    return restored.state, restored.step, restored.meta["tokens"]


def evaluate(run: Run, state: TrainState, step: int, say: Say) -> Callable[[], dict[str, float]]:
    """A function that measures held-out figures, says them, and names them for the log."""

    def measure() -> dict[str, float]:
        figures = perplexity(run.eval_sums, state.params, run.pipeline.eval_batches())
        names = [n for n in ("loss", "bits_per_byte", "accuracy") if n in figures]
        words = ", ".join(f"{name.replace('_', ' ')} {figures[name]:.4f}" for name in names)
        say(f"step {step}: held-out {words}")
        return {f"eval_{name}": figures[name] for name in names}

    return measure


def describe(run: Run, state: TrainState, start: int) -> dict[str, Any]:
    """Facts for provenance.json."""
    return {
        **provenance.describe_environment(),
        "implementation": implementation_of(run.config, run.model),
        "start_step": start,
        "parameters": count_parameters(state.params),
        "data": run.pipeline.describe(),
    }


def finish(run: Run, workdir: Path, state: TrainState, say: Say) -> None:
    """Draws the loss curve and, if the data is text, prints a sample."""
    say(f"loss curve: {plot.plot_loss(read_metrics(workdir), workdir / plot.FILE_NAME)}")
    tokenizer, prompt = run.pipeline.tokenizer, run.config.sample_prompt
    if tokenizer is None or run.config.sample_tokens == 0:
        return
    tokens = generate(
        run.model,
        state.params,
        jnp.asarray([[tokenizer.separator, *tokenizer.encode(prompt)]], jnp.int32),
        max_new_tokens=run.config.sample_tokens,
        rng=jax.random.key(run.config.seed),
        temperature=0.8,
        stop_tokens=(tokenizer.separator,),
    )
    say(f"sample:\n{prompt}{tokenizer.decode(tokens[0])}")
