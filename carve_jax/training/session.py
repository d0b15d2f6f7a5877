"""The steps of a run in one process: data in, metrics and checkpoints out, and back at need."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from carve_jax.data.token_files.shard_header import sha256
from carve_jax.training.checkpoints.checkpoint import Checkpoints
from carve_jax.training.guard import Guard
from carve_jax.training.perplexity import perplexity
from carve_jax.training.processes.agreement import for_all, is_first
from carve_jax.training.processes.stopping import Interrupted, SpikeFound, StopRequests
from carve_jax.training.processes.watchdog import Watchdog
from carve_jax.training.reports.metrics import MetricsLog, Throughput
from carve_jax.training.reports.profiling import Profile
from carve_jax.training.reports.recorder import Recorder, Say
from carve_jax.training.reports.utilisation import ideal_step_seconds
from carve_jax.training.run import Run
from carve_jax.training.step import Batch, TrainState


class Start(NamedTuple):
    """Where a process takes a run up."""

    state: TrainState
    step: int
    tokens: int


def take_steps(
    run: Run, checkpoints: Checkpoints, batches: Any, start: Start, workdir: Path, say: Say
) -> TrainState:
    """Trains from `start` to `config.steps`.

    Args:
      batches: the data iterator, at the position that belongs to `start`.
      workdir: of the run; metrics and profiles go there.
      say: takes one line for the user; all but the watchdog's are the first process's.

    Raises:
      UserError: a checkpoint could not be written or, for a rewind, read.
      TrainingDiverged: the loss or a gradient is NaN or infinite, or the guard says stop.
      Interrupted: ctrl-C or SIGTERM; the state has been saved.
    """
    config = run.config
    quiet = None if is_first() else True  # None: where there is a terminal
    speak, profiled = for_all(say), tuple(config.profile_steps) if is_first() else (0, 0)
    with (
        StopRequests() as stop,
        MetricsLog(workdir, start.step, speak) as log,
        tqdm(total=config.steps, initial=start.step, unit="step", disable=quiet) as bar,
        Watchdog(config.watchdog_seconds, say) as watchdog,
        Profile(workdir, profiled, speak) as profile,
    ):
        recorder = Recorder(
            log,
            bar,
            log_every=config.log_every,
            log_norms_every=config.log_norms_every,
            guard=Guard.from_config(config.guard),
            tokens=start.tokens,
            throughput=Throughput(ideal_seconds(run)),
            last_good=checkpoints.settled,
            say=speak,
        )
        session = Session(
            run, checkpoints, batches, start, recorder, stop, watchdog, profile, speak
        )
        return session.run_all()


class Session:
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
        self._config = run.config
        self._guard = Guard.from_config(run.config.guard)
        self._checkpoints = checkpoints
        self._batches = batches
        self._state, self._step, _ = start
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
        while self._step < self._config.steps:
            try:
                self._take_step()
            except SpikeFound as spike:
                if self._guard.action != "rewind" or self._rewinds >= self._guard.limit:
                    raise
                self._rewind(spike)
        self._watchdog.waits_for("the end of the last save")
        return self._state

    def _take_step(self) -> None:
        step, config = self._step + 1, self._config
        batch, waited = self._next_batch(step)
        self._profile.before(step)
        compiles = " and its compilation" if step == self._first else ""
        self._watchdog.waits_for(f"step {step}{compiles}")
        self._state, metrics = self._run.train_step(self._state, batch)
        self._step = step
        self._recorder.add(step, metrics, waited)
        self._profile.after(step, self._state)
        last, held_out = step == config.steps, None
        if last or step % config.eval_every == 0:
            measure = evaluate(self._run, self._state, step, self._say)
            self._watchdog.waits_for(f"step {step} and its evaluation")
            held_out = self._recorder.settle(measure)
        asked = self._stop.agreed()
        if last or step % config.checkpoint_every == 0 or asked:
            self._recorder.settle()  # nothing is saved before it is known to be good
            self._save(held_out)
        if asked and not last:
            self._checkpoints.wait()
            raise Interrupted(asked, self._checkpoints.last_good())

    def _next_batch(self, step: int) -> tuple[Batch, float]:
        """The batch of a step, and the seconds it took to come."""
        self._watchdog.waits_for(f"the data of step {step}, from {self._config.data.source!r}")
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
        meta = saved_with(self._run, self._recorder.tokens)
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
            self._run.state_shapes, multiple_of=self._config.checkpoint_every
        )
        if restored is None:
            self._state, self._step, tokens = self._run.init(), 0, 0
        else:
            self._state, self._step = restored.state, restored.step
            tokens = restored.meta["tokens"]
        self._checkpoints.forget_after(self._step)
        self._batches.set_state(self._positions[spike.step])
        self._positions.clear()
        self._rewinds += 1
        note = {"guard": "rewind", "guard_why": spike.why, "guard_step": spike.step}
        self._recorder.rewind(self._step, tokens, note)
        self._say(
            f"step {spike.step}: {spike.why}; back to step {self._step}, and on with the data "
            "after the spike"
        )


def saved_with(run: Run, tokens: int) -> dict[str, Any]:
    """What a checkpoint says besides the state: tokens seen, the config, and the data's facts."""
    tokenizer = run.pipeline.tokenizer
    return {
        "tokens": tokens,
        "config": run.config.to_dict(),
        "data": run.pipeline.describe(),
        "tokenizer_sha256": None if tokenizer is None else sha256(tokenizer.to_json()),
    }


def evaluate(run: Run, state: TrainState, step: int, say: Say) -> Callable[[], dict[str, float]]:
    """A function that measures held-out figures, says them, and names them for the log."""

    def measure() -> dict[str, float]:
        figures = perplexity(run.eval_sums, state.params, run.pipeline.eval_batches())
        names = [n for n in ("loss", "bits_per_byte", "accuracy") if n in figures]
        words = ", ".join(f"{name.replace('_', ' ')} {figures[name]:.4f}" for name in names)
        say(f"step {step}: held-out {words}")
        return {f"eval_{name}": figures[name] for name in names}

    return measure


def ideal_seconds(run: Run) -> float | None:
    """Seconds of a step at the peak of the devices it runs on; None where that is not known."""
    devices = jax.devices()[:1] if run.mesh is None else run.mesh.devices.flat
    return ideal_step_seconds(
        run.model.config,
        run.config.batch_size * run.config.sequence_length,
        run.config.sequence_length,
        [device.device_kind for device in devices],
    )
