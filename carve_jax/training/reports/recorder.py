"""Reads each step's metrics one step late, watches over them, and writes them down."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from carve_jax.training.guard import Guard
from carve_jax.training.loss import NO_SUMS, LossSums, report
from carve_jax.training.norms import flat_norms
from carve_jax.training.processes.messages import Say
from carve_jax.training.processes.stopping import SpikeFound, TrainingDiverged
from carve_jax.training.reports.metrics import MetricsLog, Throughput
from carve_jax.training.step import StepMetrics


class Recorder:
    """Turns device metrics into lines, a progress bar, and `TrainingDiverged`.

    The training loss of a line is the mean over the counted tokens of the steps since the line
    before; checkpoints carry its sums, so that a run that was stopped has the same. The other
    figures are the step's own.

    The metrics of a step are fetched when the next one has been dispatched, so the device never
    waits for the host. That is late enough to be free and early enough to be safe: a bad update is
    refused inside the step itself.

    Args:
      log_every: steps from line to line.
      log_norms_every: the same of the norms of every layer; 0 for none.
      guard: the one that judged the steps.
      tokens: counted tokens before this process started.
      loss_sums: of the steps before it since the last line.
      throughput: measures the speed.
      last_good: says where the last good checkpoint is.
      say: takes one line for the user.
    """

    def __init__(
        self,
        log: MetricsLog,
        bar: tqdm,
        *,
        log_every: int,
        log_norms_every: int,
        guard: Guard,
        tokens: int,
        loss_sums: LossSums,
        throughput: Throughput,
        last_good: Callable[[], str],
        say: Say,
    ) -> None:
        self.tokens = tokens
        self.loss_sums = loss_sums  # since the last line
        self._log = log
        self._bar = bar
        self._log_every = log_every
        self._log_norms_every = log_norms_every
        self._guard = guard
        self._throughput = throughput
        self._last_good = last_good
        self._say = say
        self._note: dict[str, Any] = {}
        self._pending: tuple[int, StepMetrics] | None = None

    def add(self, step: int, metrics: StepMetrics, waited: float = 0.0) -> None:
        """Takes the metrics of a step that may still be running; settles the step before it.

        Args:
          step: its number.
          metrics: on the device.
          waited: seconds that its batch took to come.
        """
        self._throughput.add_wait(waited)
        self.settle()
        self._pending = (step, metrics)

    def settle(
        self, evaluate: Callable[[], dict[str, float]] | None = None
    ) -> dict[str, float] | None:
        """Waits for the step last added, and writes its line if it is due or `evaluate` is given.

        Args:
          evaluate: gives held-out figures, which join the line.

        Returns:
          The held-out figures, if they were asked for.

        Raises:
          TrainingDiverged: that step was not finite.
          SpikeFound: the guard does not let the run go on from it.
        """
        if self._pending is None:
            return None
        step, metrics = self._pending
        self._pending = None
        with_norms = bool(self._log_norms_every) and step % self._log_norms_every == 0
        if not with_norms:
            metrics = dataclasses.replace(metrics, norms=None)
        host: StepMetrics = jax.device_get(metrics)
        note = self._check(step, host) | self._note
        self._note = {}
        # A batch whose very mask is broken may have been skipped.
        tokens = int(np.nan_to_num(host.sums.tokens, posinf=0))
        self.tokens += tokens
        self._throughput.add(tokens)
        both = zip(self.loss_sums, host.sums, strict=True)
        self.loss_sums = LossSums(*(total + float(own) for total, own in both))
        self._show(host)
        held_out = None
        if evaluate is not None or with_norms or note or step % self._log_every == 0:
            line = self._line(host)
            held_out = None if evaluate is None else evaluate()
            self._log.write(step, line | note | (held_out or {}))
            self._throughput.restart()
            self.loss_sums = NO_SUMS
        return held_out

    def rewind(self, step: int, tokens: int, loss_sums: LossSums, note: dict[str, Any]) -> None:
        """Goes back to `step`, with what was counted by then; `note` joins the line after it."""
        self._pending = None
        self.tokens = tokens
        self._note = note
        self._log.rewind(step)
        self._bar.n = step
        self._bar.refresh()
        self._throughput.restart()
        self.loss_sums = loss_sums

    def _check(self, step: int, host: StepMetrics) -> dict[str, Any]:
        """What a line says of a spike that was skipped; {} for a step like others."""
        if not self._guard.on:
            bad = [name for name, finite in host.finite.items() if not finite]
            if len(bad) == len(host.finite):
                bad = ["the loss and the gradients of all parameter groups"]
            if bad:
                raise TrainingDiverged(step, bad, self._last_good())
            return {}
        verdict = host.verdict
        if not verdict.spike:
            return {}
        why, in_a_row = self._guard.why(verdict, float(host.grad_norm)), int(verdict.in_a_row)
        if not self._guard.skips:
            raise SpikeFound(step, why, self._last_good())
        if in_a_row >= self._guard.limit:
            raise SpikeFound(step, f"{in_a_row} spikes in a row, at last {why}", self._last_good())
        self._say(f"step {step}: {why}; the update was skipped")
        return {
            "guard": "skip",
            "guard_why": why,
            "loss_limit": float(verdict.loss_limit),
            "grad_norm_limit": float(verdict.grad_norm_limit),
        }

    def _line(self, host: StepMetrics) -> dict[str, Any]:
        return {
            **report(self.loss_sums),
            "grad_norm": float(host.grad_norm),
            "param_norm": float(host.param_norm),
            "learning_rate": float(host.learning_rate),
            "tokens": self.tokens,
            **self._throughput.figures(),
            **({} if host.norms is None else flat_norms(host.norms)),
        }

    def _show(self, host: StepMetrics) -> None:
        shown = {name: f"{value:.3f}" for name, value in report(host.sums).items()}
        rate = self._throughput.rate()
        if rate is not None:
            shown["tokens/s"] = f"{rate:,.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
