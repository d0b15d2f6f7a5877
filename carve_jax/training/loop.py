"""The main loop: train a run from its config, and leave everything in its directory."""

import copy
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from carve_jax.training.checkpoints.checkpoint import Checkpoints
from carve_jax.training.loss import NO_SUMS
from carve_jax.training.perplexity import perplexity
from carve_jax.training.processes.messages import (
    Say,
    for_all,
    is_first,
    require_same,
    together,
)
from carve_jax.training.processes.stopping import Interrupted, SpikeFound, StopRequests
from carve_jax.training.processes.watchdog import Watchdog
from carve_jax.training.reports import provenance, whole_run
from carve_jax.training.reports.metrics import MetricsLog, Throughput
from carve_jax.training.reports.profiling import Profile
from carve_jax.training.reports.recorder import Recorder
from carve_jax.training.run import (
    Run,
    Start,
    build,
    loss_sums_of,
    restore_or_init,
    saved_with,
)
from carve_jax.training.settings import flatten
from carve_jax.training.step import Batch, TrainState
from carve_jax.training.workdir import CHECKPOINTS, alone, claim


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
    agree(config.to_dict(), workdir)
    with together():
        run = build(config)
    require_same("the data", flatten(run.pipeline.describe()), "give all the same files and Python")
    speak = for_all(say)
    with alone(workdir, speak):
        return train_in(workdir, run, say)


def train_in(workdir: Path, run: Run, say: Say) -> TrainState:
    """Trains a run in a directory that is held for it; see `train`."""
    settings, speak = run.settings, for_all(say)
    claim(workdir, settings.plain, run.pipeline.tokenizer, speak)
    with Checkpoints(
        workdir / CHECKPOINTS,
        keep=settings.keep_checkpoints,
        keep_every=settings.keep_every,
        keep_best=settings.keep_best,
        say=speak,
    ) as checkpoints:
        batches = run.pipeline.train_iterator()
        start = restore_or_init(run, checkpoints, batches, workdir)
        whole_run.begin(run, workdir, start, speak)
        state = take_steps(run, checkpoints, batches, start, workdir, say)
    whole_run.finish(run, workdir, state, speak)
    return state


def take_steps(
    run: Run, checkpoints: Checkpoints, batches: Any, start: Start, workdir: Path, say: Say
) -> TrainState:
    """Trains from `start` to the last step.

    Args:
      batches: the data iterator, at the position that belongs to `start`.
      workdir: of the run; metrics and profiles go there.
      say: takes one line for the user; all but the watchdog's are the first process's.

    Raises:
      UserError: a checkpoint could not be written or, for a rewind, read.
      TrainingDiverged: the loss or a gradient is NaN or infinite, or the guard says stop.
      Interrupted: ctrl-C or SIGTERM; the state has been saved.
    """
    settings = run.settings
    quiet = None if is_first() else True  # None: where there is a terminal
    speak, profiled = for_all(say), settings.profile_steps if is_first() else (0, 0)
    with (
        StopRequests() as stop,
        MetricsLog(workdir, start.step, speak) as log,
        tqdm(total=settings.steps, initial=start.step, unit="step", disable=quiet) as bar,
        Watchdog(settings.watchdog_seconds, say) as watchdog,
        Profile(workdir, profiled, speak) as profile,
    ):
        recorder = Recorder(
            log,
            bar,
            log_every=settings.log_every,
            log_norms_every=settings.log_norms_every,
            guard=settings.guard,
            tokens=start.tokens,
            loss_sums=start.loss_sums,
            throughput=Throughput(whole_run.ideal_seconds(run)),
            last_good=checkpoints.settled,
            say=speak,
        )
        if start.step < settings.steps:
            bar.set_postfix_str("compiling the first step")
        loop = Loop(run, checkpoints, batches, start, recorder, stop, watchdog, profile, speak)
        return loop.run_all()


class Loop:
    """What `take_steps` carries from step to step."""

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        batches: Any,
        start: Start,
        recorder: Recorder,
        stop: StopRequests,
        watchdog: Watchdog,
        profile: Profile,
        say: Say,
    ) -> None:
        self._run = run
        self._settings = run.settings
        self._guard = run.settings.guard
        self._checkpoints = checkpoints
        self._batches = batches
        self._state, self._step = start.state, start.step
        self._first = start.step + 1
        self._recorder = recorder
        self._stop = stop
        self._watchdog = watchdog
        self._profile = profile
        self._say = say
        self._positions: dict[int, Any] = {}  # of the data after the last steps
        self._rewinds = 0  # since a checkpoint was last saved

    def run_all(self) -> TrainState:
        """Takes all the steps that are left."""
        while self._step < self._settings.steps:
            try:
                self._take_step()
            except SpikeFound as spike:
                if self._guard.action != "rewind" or self._rewinds >= self._guard.limit:
                    raise
                self._rewind(spike)
        self._watchdog.waits_for("the end of the last save")
        return self._state

    def _take_step(self) -> None:
        step, settings = self._step + 1, self._settings
        batch, waited = self._next_batch(step)
        self._profile.before(step)
        compiles = " and its compilation" if step == self._first else ""
        self._watchdog.waits_for(f"step {step}{compiles}")
        self._state, metrics = self._run.train_step(self._state, batch)
        self._step = step
        self._recorder.add(step, metrics, waited)
        self._profile.after(step, self._state)
        last, held_out = step == settings.steps, None
        if last or step % settings.eval_every == 0:
            measure = evaluate(self._run, self._state, step, self._say)
            self._watchdog.waits_for(f"step {step} and its evaluation")
            held_out = self._recorder.settle(measure)
        asked = self._stop.agreed()
        if last or step % settings.checkpoint_every == 0 or asked:
            self._recorder.settle()  # nothing is saved before it is known to be good
            self._save(held_out)
        if asked and not last:
            self._checkpoints.wait()
            raise Interrupted(asked, self._checkpoints.last_good())

    def _next_batch(self, step: int) -> tuple[Batch, float]:
        """The batch of a step, and the seconds it took to come."""
        self._watchdog.waits_for(f"the data of step {step}, from {self._settings.data.source!r}")
        begun = time.perf_counter()
        batch = next(self._batches)
        waited = time.perf_counter() - begun
        if self._guard.on and self._guard.action == "rewind":
            # A spike is known one step late, when one batch more than it may have been drawn.
            self._positions.pop(step - 2, None)
            self._positions[step] = copy.deepcopy(self._batches.get_state())
        return batch, waited

    def _save(self, held_out: dict[str, float] | None) -> None:
        self._watchdog.waits_for(f"a checkpoint of step {self._step}")
        meta = saved_with(self._run, self._recorder.tokens, self._recorder.loss_sums)
        if held_out is not None:
            meta["eval_loss"] = held_out["eval_loss"]
        self._checkpoints.save(self._step, self._state, self._batches, meta)
        self._rewinds = 0

    def _rewind(self, spike: SpikeFound) -> None:
        """Goes back to the newest checkpoint, and on with the data after the spike.

        A scheduled checkpoint is preferred to one of an interruption, so that a run that was
        interrupted takes the way of one that was not.
        """
        self._watchdog.waits_for(f"a checkpoint from before step {spike.step}")
        self._checkpoints.wait()
        restored = self._checkpoints.restore(
            self._run.state_shapes, multiple_of=self._settings.checkpoint_every
        )
        if restored is None:
            self._state, self._step, tokens, sums = self._run.init(), 0, 0, NO_SUMS
        else:
            self._state, self._step = restored.state, restored.step
            tokens, sums = restored.meta["tokens"], loss_sums_of(restored.meta)
        self._checkpoints.forget_after(self._step)
        self._batches.set_state(self._positions[spike.step])
        self._positions.clear()
        self._rewinds += 1
        note = {"guard": "rewind", "guard_why": spike.why, "guard_step": spike.step}
        self._recorder.rewind(self._step, tokens, sums, note)
        self._say(
            f"step {spike.step}: {spike.why}; back to step {self._step}, and on with the data "
            "after the spike"
        )


def evaluate(run: Run, state: TrainState, step: int, say: Say) -> Callable[[], dict[str, float]]:
    """A function that measures held-out figures, says them, and names them for the log."""

    def measure() -> dict[str, float]:
        figures = perplexity(run.eval_sums, state.params, run.pipeline.eval_batches())
        names = [n for n in ("loss", "bits_per_byte", "accuracy") if n in figures]
        words = ", ".join(f"{name.replace('_', ' ')} {figures[name]:.4f}" for name in names)
        say(f"step {step}: held-out {words}")
        return {f"eval_{name}": figures[name] for name in names}

    return measure


def agree(config: Mapping[str, Any], workdir: Path) -> None:
    """Raises AgreedError unless all processes were started alike."""
    if jax.process_count() == 1:
        return
    code = {"--workdir": str(workdir.absolute()), "code": provenance.describe_code()}
    facts = flatten({**config, **code})
    require_same("the config", facts, "start all processes with the same command and code")
