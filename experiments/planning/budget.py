"""What a train step takes of a device and of a day, by shapes and rates alone."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from carve_jax.accounting import activation_bytes, forward_flops, parameter_shapes
from carve_jax.config import LMConfig
from carve_jax.model import count_parameters
from carve_jax.placement import state_specs
from carve_jax.training.step import TrainState
from experiments.planning.rates import Rates

RECOMPUTED = ("full", "rule")  # of `remat`: backward multiplies by the layers' weights once more
STEP = 256  # sequences are counted in multiples of this
BATCH = {"tokens": 4, "targets": 4, "segment_ids": 4, "loss_mask": 4, "target_bytes": 4}
"""Bytes per token of each array of a batch."""


class Work(NamedTuple):
    """One optimizer step, as its config cuts it.

    Attributes:
      tokens: of a step.
      turns: parts that the batch is taken in.
      passes: how often the weights are read in a turn: forward, backward, and once more where
        layers are computed again.
      model_flops: floating-point operations per token, forward and backward.
      flops: the same with what is computed again.
    """

    tokens: int
    turns: int
    passes: int
    model_flops: float
    flops: float


def work(config: ConfigDict, model: LMConfig) -> Work:
    """The work of a step: remat="full" computes all layers again, and remat="rule" all of them but
    their rules; the head is computed once."""
    parts = forward_flops(model, _context(config))
    forward, recomputed = sum(parts.values()), model.remat in RECOMPUTED
    again = forward - 2.0 * model.vocab_size * model.d_model if recomputed else 0.0
    if model.remat == "rule":
        again -= parts["rule"]
    return Work(
        tokens=config.batch_size * config.sequence_length,
        turns=config.optimizer.accumulate_steps,
        passes=3 if recomputed else 2,
        model_flops=3 * forward,
        flops=3 * forward + again,
    )


def shape_bytes(
    config: ConfigDict, model: LMConfig, state: TrainState, sizes: Mapping[str, int]
) -> dict[str, float]:
    """Bytes of a device by what they hold, as far as shapes tell; the first three are exact.

    Gradients lie as the parameters they belong to. What backward keeps of the layers is traced on
    the shapes of one device's rows; a part that "tensor" cuts counts whole.

    Args:
      state: shapes of a run's state.
      sizes: of the mesh, by axis.
    """
    specs = state_specs(model, state, sizes)
    parameters = _cut_bytes(state.params, specs.params, sizes)
    tokens = config.batch_size * config.sequence_length / token_parts(sizes)
    return {
        "parameters": parameters,
        "optimizer state": _cut_bytes(state, specs, sizes) - parameters,
        "batch": tokens * sum(BATCH.values()),
        "gradients": parameters,
        "activations kept": activation_bytes(model, _context(config))
        * (tokens / config.optimizer.accumulate_steps),
    }


def estimated_working_bytes(config: ConfigDict, model: LMConfig, sizes: Mapping[str, int]) -> float:
    """A guess at the memory of one layer while backward goes through it, where layers are computed
    again, or of the loss if that is larger; weights that are gathered for it included."""
    tokens = config.batch_size * config.sequence_length / token_parts(sizes)
    tokens /= config.optimizer.accumulate_steps
    logits = 2 * 4 * model.vocab_size * min(config.loss_chunk, tokens)  # and their gradient
    head = model.vocab_size * model.d_model * _itemsize(model)
    if model.remat not in RECOMPUTED:
        return logits + head
    plain = dataclasses.replace(model, remat="none")
    layer = activation_bytes(plain, _context(config)) / model.repeats * tokens
    parameters = count_parameters(parameter_shapes(model))
    blocks = parameters["total"] - parameters["embedding"] - parameters["head"]
    return max(logits + head, layer + blocks / model.repeats * _itemsize(model))


def estimated_sent_bytes(
    model: LMConfig, parameters: float, sizes: Mapping[str, int], step: Work
) -> dict[str, float]:
    """Bytes that a device sends in a step at least, on rings.

    Weights are gathered for each pass (the table of embeddings for one) and gradients scattered in
    the model's dtype, gradients are summed over "data" in float32, and two sums of the residual
    stream per layer and pass are taken over "tensor".

    Args:
      parameters: of the model, in numbers.
    """
    fsdp, tensor = sizes["fsdp"], sizes["tensor"]
    share = {axis: (size - 1) / size for axis, size in sizes.items()}
    table = 0 if model.tie_embeddings else model.vocab_size * model.d_model
    whole = parameters / tensor * _itemsize(model)
    read = ((parameters - table) * step.passes + table) / tensor * _itemsize(model)
    stream = step.tokens / token_parts(sizes) * model.d_model * _itemsize(model)
    return {
        "all-gather": share["fsdp"] * read * step.turns,
        "reduce-scatter": share["fsdp"] * whole * step.turns,
        "all-reduce": 2 * share["data"] * parameters * 4 / (fsdp * tensor)
        + 2 * share["tensor"] * stream * 2 * model.layers * step.passes,
    }


def least_seconds(
    step: Work,
    memory: Mapping[str, float],
    sent: Mapping[str, float],
    rates: Rates,
    *,
    weights: float,
    devices: int,
) -> dict[str, float]:
    """Seconds that a step takes at least, by what it must do; "all" is the largest, all at once.

    Memory: the state and the gradients are written and read once, so are the activations kept,
    and each pass reads the weights. What a layer does inside counts for nothing.

    Args:
      memory: as `shape_bytes` gives it.
      sent: bytes that a device sends in a step.
      weights: bytes of a device's part of the model in the dtype it computes in, gathered.
    """
    held = memory["parameters"] + memory["optimizer state"] + memory["gradients"]
    moved = 2 * held + 2 * step.turns * memory["activations kept"]
    moved += step.turns * step.passes * weights
    found = {
        "arithmetic": step.tokens * step.flops / (devices * rates.flops),
        "memory": moved / rates.bandwidth,
        "sending": sum(sent.values()) / rates.sending,
    }
    return found | {"all": max(found.values())}


def token_parts(sizes: Mapping[str, int]) -> int:
    """Parts that the batch's tokens are cut in, by rows and along them."""
    return sizes["data"] * sizes["fsdp"] * sizes["sequence"]


def gathered_bytes(model: LMConfig, parameters: float, sizes: Mapping[str, int]) -> float:
    """Bytes of all the weights that a device multiplies by, in the dtype it computes in."""
    return parameters / sizes["tensor"] * _itemsize(model)


def _context(config: ConfigDict) -> int:
    return -(-config.sequence_length // STEP) * STEP


def _itemsize(model: LMConfig) -> int:
    return np.dtype(jax.numpy.dtype(model.compute_dtype)).itemsize


def _cut_bytes(tree: Any, specs: Any, sizes: Mapping[str, int]) -> float:
    """Bytes of a device's part of a tree of shapes that lies as the specs say."""

    def part(leaf: Any, spec: PartitionSpec) -> float:
        names = [name for axis in spec if axis for name in ([axis] if axis in sizes else axis)]
        cut = math.prod(sizes[name] for name in names)
        return leaf.size * leaf.dtype.itemsize / cut

    leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    return sum(part(*pair) for pair in zip(jax.tree.leaves(tree), leaves, strict=True))
