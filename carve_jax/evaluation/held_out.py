"""The task `perplexity`: a run's held-out documents, each as it was cut for training."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from carve_jax.errors import UserError
from carve_jax.evaluation.evaluated_model import EvaluatedModel
from carve_jax.evaluation.reading import score_targets
from carve_jax.evaluation.tasks import Figure, Options, Result, exponential, ratio
from carve_jax.model import LanguageModel
from carve_jax.shapes import Array, Bool, Float32
from carve_jax.training.run import build_pipeline
from carve_jax.training.settings import read_batches


def held_out_perplexity(evaluated: EvaluatedModel, options: Options) -> Result:
    """Loss, accuracy and bits per byte over the held-out documents, or so many of them.

    Standard errors take the pieces into which a row is divided as independent: documents, but for
    those longer than a row, which are several.

    Raises:
      UserError: nothing is held out.
    """
    pipeline = build_pipeline(read_batches(evaluated.config), evaluated.model.config)
    sums = []
    batches = tqdm(
        pipeline.eval_batches(), "perplexity", unit="batch", disable=not evaluated.scorer.progress
    )
    for batch in batches:
        likelihoods, correct = token_scores(evaluated.model, evaluated.params, dict(batch))
        sums.append(by_document(batch, np.asarray(likelihoods), np.asarray(correct)))
        if options.limit and sum(map(len, sums)) >= options.limit:
            break
    nats, tokens, size, right = counted(sums, options.limit).T
    loss = ratio(nats, tokens)
    metrics = {
        "loss": loss,
        "perplexity": exponential(loss),
        "accuracy": ratio(right, tokens),
    }
    facts: dict[str, Any] = {"tokens": int(tokens.sum()), "data": pipeline.describe()}
    if size.sum() > 0:
        metrics["bits_per_byte"] = _scaled(ratio(nats, size), 1 / math.log(2))
        facts["bytes"] = int(size.sum())
    return Result(metrics, facts)


@functools.partial(jax.jit, static_argnames="model")
def token_scores(
    model: LanguageModel, params: Any, batch: Mapping[str, Array]
) -> tuple[Float32[Array, "B T"], Bool[Array, "B T"]]:
    """Log-likelihood of every target of a batch, and whether it is the likeliest."""
    hidden, _ = model.apply(
        {"params": params}, batch["tokens"], segment_ids=batch["segment_ids"], method="hidden"
    )
    return score_targets(model, params, hidden, batch["targets"])


def by_document(batch: Mapping[str, Any], likelihoods: np.ndarray, correct: np.ndarray):
    """[documents, 4]: nats, tokens, bytes and right guesses of each document that has targets."""
    segments = np.asarray(batch["segment_ids"])
    width = int(segments.max()) + 1
    places = (np.arange(len(segments))[:, None] * width + segments).ravel()
    counted = np.asarray(batch["loss_mask"], np.float64)
    size = batch.get("target_bytes", np.zeros_like(segments))
    columns = (-likelihoods.astype(np.float64), np.ones_like(counted), size, correct)
    sums = [
        np.bincount(places, weights=(counted * column).ravel(), minlength=len(segments) * width)
        for column in columns
    ]
    table = np.stack(sums, axis=1)
    return table[table[:, 1] > 0]


def counted(tables: Sequence[np.ndarray], limit: int | None) -> np.ndarray:
    """The documents of all batches, or so many of them.

    Raises:
      UserError: there is none.
    """
    if not sum(map(len, tables)):
        raise UserError(
            "the held-out set has no tokens: give more documents, or a larger "
            "config.data.eval_fraction"
        )
    return np.concatenate(tables)[:limit]


def _scaled(figure: Figure, factor: float) -> Figure:
    error = None if figure.stderr is None else figure.stderr * factor
    return Figure(figure.value * factor, error, figure.count)
