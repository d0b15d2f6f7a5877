"""Held-out loss and bits per byte, exact over every counted token."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from carve_jax.errors import UserError

SumsFn = Callable[[Any, Mapping[str, Any]], Any]


def perplexity(loss_sums: SumsFn, params: Any, batches: Iterable[Mapping[str, Any]]) -> dict:
    """Runs the model over `batches` and weighs every counted token alike.

    Args:
      loss_sums: (params, batch) -> `carve_jax.training.loss.LossSums`, best jitted.
      batches: dictionaries of arrays as `DataPipeline.eval_batches()` gives them.

    Returns:
      `loss` (nats per token), `perplexity`, `accuracy`, `tokens`, and for text `bits_per_byte`
      and `bytes`. Sums over batches are float64.

    Raises:
      UserError: no token counts, so there is nothing to measure.
    """
    total = np.zeros(4, np.float64)
    pending = None
    for batch in batches:
        sums = loss_sums(params, dict(batch))
        # Read one batch late: the device works on this one while the host fetches the last.
        if pending is not None:
            total += _to_host(pending)
        pending = sums
    if pending is not None:
        total += _to_host(pending)
    nats, tokens, size, correct = total.tolist()
    if tokens == 0:
        raise UserError(
            "the held-out set has no tokens: give more documents, or a larger "
            "config.data.eval_fraction"
        )
    loss = nats / tokens
    figures = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # beyond it float64 overflows
        "accuracy": correct / tokens,
        "tokens": int(tokens),
    }
    if size > 0:
        figures |= {"bits_per_byte": nats / (math.log(2) * size), "bytes": int(size)}
    return figures


def _to_host(sums: Any) -> np.ndarray:
    host = jax.device_get(sums)
    return np.array([host.nats, host.tokens, host.bytes, host.correct], np.float64)
