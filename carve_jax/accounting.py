"""What a model costs before it is built: parameters, state, arithmetic and activations.

Shapes alone are traced: nothing is allocated and nothing runs, at any size.
"""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from carve_jax.config import LMConfig
from carve_jax.mixers import MIXERS
from carve_jax.model import LanguageModel, count_parameters, layer_names


class Costs(NamedTuple):
    """The costs of one model; sizes in numbers of elements unless they say bytes.

    Attributes:
      parameters: by part, and "total" (`count_parameters`).
      mixers: of each mixer in the pattern, its parameters by name, over all of its layers.
      state: of each recurrent mixer, floats of recurrent memory in one layer.
      cache_bytes: of the whole model for one sequence, by its length.
      forward_flops: floating-point operations per token in a sequence of `context` tokens, by part.
      activation_bytes: bytes per token of such a sequence, kept from forward to backward.
      context: tokens of a sequence.
    """

    parameters: dict[str, int]
    mixers: dict[str, dict[str, int]]
    state: dict[str, int]
    cache_bytes: dict[int, int]
    forward_flops: dict[str, float]
    activation_bytes: float
    context: int

    @property
    def train_flops(self) -> float:
        """See `train_flops`."""
        return train_flops(self.forward_flops)


def train_flops(forward: Mapping[str, float]) -> float:
    """Floating-point operations per token of training: backward is twice forward.

    What rematerialisation computes again is not counted.

    Args:
      forward: of `forward_flops`.
    """
    return 3 * sum(forward.values())


def costs(config: LMConfig, *, context: int, cache_lengths: tuple[int, ...] = ()) -> Costs:
    """The costs of a model in training on sequences of `context` tokens (a multiple of 256).

    Raises:
      ValueError: `context` is no multiple of 256.
    """
    if context < 1 or context % 256:
        raise ValueError(f"context={context}; it must be a multiple of 256.")
    params = parameter_shapes(config)
    mixers = mixer_parameters(config, params)
    return Costs(
        parameters=count_parameters(params),
        mixers=mixers,
        state=state_sizes(config),
        cache_bytes={length: cache_bytes(config, length) for length in cache_lengths},
        forward_flops=forward_flops(config, context),
        activation_bytes=activation_bytes(config, context),
        context=context,
    )


def parameter_shapes(config: LMConfig) -> Any:
    """The tree of shapes of the model's parameters."""

    def init() -> Any:
        tokens = jnp.zeros((1, config.segment_alignment), jnp.int32)
        return LanguageModel(config).init(jax.random.key(0), tokens)

    return jax.eval_shape(init)["params"]


def mixer_parameters(config: LMConfig, params: Any) -> dict[str, dict[str, int]]:
    """Numbers of parameters of each mixer in the pattern, by name, over all of its layers."""
    found: dict[str, collections.Counter[str]] = {}
    for name, mixer in layer_names(config):
        counts = found.setdefault(mixer, collections.Counter())
        for part, leaves in params["blocks"][name]["mixer"].items():
            counts[part] += sum(leaf.size for leaf in jax.tree.leaves(leaves))
    return {mixer: dict(counts) for mixer, counts in found.items()}


def state_sizes(config: LMConfig) -> dict[str, int]:
    """Floats of recurrent memory in one layer of each mixer that has such a memory."""
    sizes = {mixer: MIXERS[mixer].state_size(config) for mixer in config.pattern}
    return {mixer: size for mixer, size in sizes.items() if size}


def cache_bytes(config: LMConfig, length: int) -> int:
    """Bytes of the caches of one sequence of that length."""
    cache = jax.eval_shape(lambda: LanguageModel(config).init_cache(1, length))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def forward_flops(config: LMConfig, context: int) -> dict[str, float]:
    """Floating-point operations per token of one forward pass, by part.

    "projections" are two per parameter of every matrix (the embedding apart), "rule" is what the
    recurrence itself needs (an implementation may do more), and "attention" is what softmax
    attention does; each mixer's entry counts its own.
    """
    params = parameter_shapes(config)
    matrices = [
        leaf.size for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "kernel"
    ]
    if config.tie_embeddings:
        matrices.append(config.vocab_size * config.d_model)
    found = {"projections": 2.0 * sum(matrices), "rule": 0.0, "attention": 0.0}
    for mixer in config.pattern:
        for part, flops in MIXERS[mixer].forward_flops(config, context).items():
            found[part] += config.repeats * flops
    return found


def activation_bytes(config: LMConfig, context: int) -> float:
    """Bytes per token that backward keeps of the blocks in a sequence of `context` tokens.

    Counted on the traced program (this device's implementation of the rule, `config.remat`);
    what does not depend on the sequence, such as parameters, is taken out by tracing shorter ones
    too: residuals are linear in the length, or a quadratic where some mixer is attention.
    """
    params = parameter_shapes(config)
    model = LanguageModel(config)

    def residual_bytes(length: int) -> int:
        tokens = jnp.zeros((1, length), jnp.int32)

        def pullback(params: Any) -> Any:
            return jax.vjp(
                lambda p: model.apply({"params": p}, tokens, method="hidden")[0], params
            )[1]

        kept = jax.eval_shape(pullback, params)
        return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(kept))

    whole, half = residual_bytes(context), residual_bytes(context // 2)
    if state_sizes(config).keys() != set(config.pattern):
        constant = (whole - 6 * half + 8 * residual_bytes(context // 4)) / 3
    else:
        constant = 2 * half - whole
    return (whole - constant) / context
