"""The task `content`: what a trained model makes of the content that its erase gates see."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from carve_jax.errors import UserError
from carve_jax.evaluation.evaluated_model import EvaluatedModel
from carve_jax.evaluation.held_out import by_document, counted, token_scores
from carve_jax.evaluation.tasks import Figure, Options, Result, mean, ratio
from carve_jax.evaluation.trace import Trace, trace
from carve_jax.model import LanguageModel
from carve_jax.shapes import Array
from carve_jax.training.optimizer import leaf_name
from carve_jax.training.run import build_pipeline
from carve_jax.training.settings import read_batches
from carve_jax.training.step import make_loss

UP = "content_up"
LOSS_CHUNK = 4096  # tokens whose logits exist at once
ROWS = 4
"""Held-out rows whose gates are looked at token by token."""


def content_use(evaluated: EvaluatedModel, options: Options) -> Result:
    """How far content moves the erase gates, and what held-out loss is without it.

    `gate_shift` is the mean over layers, tokens and key channels of |b − b under no content|, of
    the first `ROWS` held-out rows, each read as one document. `loss_without_content` is the loss
    with P_up = 0 in every layer, all else as it was trained, and `content_gain` the difference per
    token, above zero where content helps. `up_gradient_share` is the norm of the loss's gradient by
    all P_up over that by all parameters, of the first held-out batch.

    Raises:
      UserError: no layer sees content, or nothing is held out.
    """
    blind = without_content(evaluated.params)
    if blind is None:
        pattern = evaluated.model.config.pattern
        raise UserError(
            f"--tasks: content asks for a layer with a content gate, and pattern={pattern} has none"
        )
    pipeline = build_pipeline(read_batches(evaluated.config), evaluated.model.config)
    hidden = not evaluated.scorer.progress
    tables: list[np.ndarray] = []
    shifts: list[float] = []
    shares: list[float] = []
    for batch in tqdm(pipeline.eval_batches(), "content", unit="batch", disable=hidden):
        for row in batch["tokens"][: ROWS - len(shifts)]:
            shifts.append(gate_shift(trace(evaluated.model, evaluated.params, row, states=False)))
        if not shares:
            share = up_gradient_share(evaluated.model, evaluated.params, dict(batch))
            shares.append(float(share))
        nats = []
        for params in (evaluated.params, blind):
            scores = token_scores(evaluated.model, params, dict(batch))
            nats.append(by_document(batch, *map(np.asarray, scores)))
        tables.append(np.column_stack([nats[0][:, :2], nats[1][:, 0]]))
        if options.limit and sum(map(len, tables)) >= options.limit:
            break
    seen, tokens, unseen = counted(tables, options.limit).T
    metrics: dict[str, Figure] = {
        "loss": ratio(seen, tokens),
        "loss_without_content": ratio(unseen, tokens),
        "content_gain": ratio(unseen - seen, tokens),
        "gate_shift": mean(shifts),
        "up_gradient_share": mean(shares),
    }
    return Result(metrics, {"tokens": int(tokens.sum()), "data": pipeline.describe()})


def without_content(params: Any) -> Any | None:
    """The parameters with P_up = 0 in all layers; None where no layer has one."""
    found = False

    def cut(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        nonlocal found
        if leaf_name(path) != UP:
            return leaf
        found = True
        return jnp.zeros_like(leaf)

    cut_off = jax.tree_util.tree_map_with_path(cut, params)
    return cut_off if found else None


@functools.partial(jax.jit, static_argnames="model")
def up_gradient_share(model: LanguageModel, params: Any, batch: Mapping[str, Array]) -> jax.Array:
    """‖∂loss/∂P_up‖ over ‖∂loss/∂(all parameters)‖, P_up those of all layers together."""
    loss = make_loss(model, loss_chunk=LOSS_CHUNK)
    gradient = jax.grad(lambda params: loss(params, batch).nats)(params)
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    of_up = [leaf for path, leaf in leaves if leaf_name(path) == UP]
    return optax.tree.norm(of_up) / optax.tree.norm(gradient)


def gate_shift(read: Trace) -> float:
    """Mean of |b − b under no content| over the layers that see content, tokens and channels."""
    sees = [i for i, name in enumerate(read.layers) if np.any(read.content[i])]
    if not sees:
        return 0.0
    return float(np.abs(read.erase[sees] - read.blind_erase[sees]).mean())
