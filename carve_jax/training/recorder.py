"""Reads each step's metrics one step late, watches over them, and writes them down."""

from collections.abc import Callable
from typing import Any

import jax
from tqdm import tqdm

from carve_jax.training.loss import report
from carve_jax.training.metrics import MetricsLog, Throughput
from carve_jax.training.step import StepMetrics
from carve_jax.training.stopping import TrainingDiverged


class Recorder:
    """Turns device metrics into lines, a progress bar, and `TrainingDiverged`.

    The metrics of a step are fetched when the next one has been dispatched, so the device never
    waits for the host. That is late enough to be free and early enough to be safe: a bad update is
    refused inside the step itself.

    Args:
      tokens: counted tokens before this process started.
      last_good: says where the last good checkpoint is.
    """

    def __init__(
        self,
        log: MetricsLog,
        bar: tqdm,
        log_every: int,
        tokens: int,
        last_good: Callable[[], str],
    ) -> None:
        self.tokens = tokens
        self._log = log
        self._bar = bar
        self._log_every = log_every
        self._last_good = last_good
        self._throughput = Throughput()
        self._pending: tuple[int, StepMetrics] | None = None

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Takes the metrics of a step that may still be running; settles the step before it."""
        self.settle()
        self._pending = (step, metrics)

    def settle(self, evaluate: Callable[[], dict[str, float]] | None = None) -> None:
        """Waits for the step last added, and writes its line if it is due or `evaluate` is given.

        Args:
          evaluate: gives held-out figures, which join the line.

        Raises:
          TrainingDiverged: that step was not finite.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        host: StepMetrics = jax.device_get(metrics)
        self._check(step, host)
        tokens = int(host.sums.tokens)
        self.tokens += tokens
        self._throughput.add(tokens)
        self._show(host)
        if evaluate is not None or step % self._log_every == 0:
            line = self._line(host)
            held_out = {} if evaluate is None else evaluate()
            self._log.write(step, line | held_out)
            self._throughput.restart()

    def _check(self, step: int, host: StepMetrics) -> None:
        bad = [name for name, finite in host.finite.items() if not finite]
        if len(bad) == len(host.finite):
            bad = ["the loss and the gradients of all parameter groups"]
        if bad:
            raise TrainingDiverged(step, bad, self._last_good())

    def _line(self, host: StepMetrics) -> dict[str, Any]:
        line = {
            **report(host.sums),
            "grad_norm": float(host.grad_norm),
            "param_norm": float(host.param_norm),
            "learning_rate": float(host.learning_rate),
            "tokens": self.tokens,
        }
        rate = self._throughput.rate()
        return line if rate is None else line | {"tokens_per_second": rate}

    def _show(self, host: StepMetrics) -> None:
        shown = {name: f"{value:.3f}" for name, value in report(host.sums).items()}
        rate = self._throughput.rate()
        if rate is not None:
            shown["tokens/s"] = f"{rate:,.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
