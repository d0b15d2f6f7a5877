"""How the process of a run ended: its status, and a sentence about it."""

import signal
from dataclasses import replace

from carve_jax.training.processes.stopping import TrainingDiverged
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.store import Status, Store


def status_at_end(
    store: Store,
    run: PlannedRun,
    code: int,
    *,
    seconds: float,
    peak_rss: int,
    stopping: bool,
) -> Status:
    """The status of a run whose process has ended.

    Args:
      code: its exit code; negative for a signal.
      seconds: that it took.
      peak_rss: the most memory that it held, in bytes.
      stopping: whether it was asked to stop.
    """
    before = store.status(run)
    status = replace(
        before,
        exit_code=code,
        seconds=round(before.seconds + seconds, 2),
        peak_rss_bytes=max(peak_rss, before.peak_rss_bytes or 0),
        device_peak_bytes=store.device_peak_bytes(run),
    )
    if code == 0 and store.took_all_steps(run):
        return replace(status, state="done", message="")
    if stopping:
        return replace(status, state="waiting", message="interrupted")
    state = "diverged" if code == TrainingDiverged.exit_code else "failed"
    return replace(status, state=state, message=_reason(store, run, code))


def _reason(store: Store, run: PlannedRun, code: int) -> str:
    if code == 0:
        step = store.last_figures(run).get("step", 0)
        return f"it ended at step {step} of {run.config.steps}"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return store.last_line(run)


def sentence(store: Store, run: PlannedRun, status: Status, again: bool) -> str:
    """What the user is told of it; `again` if it is tried once more."""
    if status.state == "done":
        figures = store.last_figures(run)
        shown = {
            name: "NaN" if value is None else f"{value:.4f}"
            for name, value in figures.items()
            if name.startswith("eval_")
        }
        words = ", ".join(f"{name} {text}" for name, text in shown.items())
        return f"{run.id} done in {status.seconds:.0f} s: {words or 'no figures of held-out data'}"
    if again:
        return f"{run.id} crashed ({status.message}): trying it once more"
    if status.state == "waiting":
        return f"{run.id} stopped; the same command goes on with it"
    return f"{run.id} {status.state}: {status.message}; see {store.path(run, 'log')}"
