"""The small models that some experiments train for a few steps, and a look inside their layers.

The rule runs as `recurrent`: at these sizes compiling the chunked one takes longer than training.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from carve_jax.mixers import MIXERS
from carve_jax.model import LanguageModel
from carve_jax.training.run import build
from configs import mqar, quickstart


def recall_config(mixer: str, steps: int, **model: Any) -> ConfigDict:
    """Associative recall, 4 pairs in 64 tokens, four layers of width 32."""
    config = mqar.get_config()
    config.model.update({"d_model": 32, "layers": 4, "mlp_dim": 64, "num_heads": 2, "key_dim": 16})
    config.model.update({"value_dim": 16, "pattern": (mixer,), **model})
    config.model.implementation = "recurrent"
    config.data.num_pairs = 4
    config.batch_size, config.steps = 16, max(steps, 2)
    return config


def text_config(mixer: str, steps: int) -> ConfigDict:
    """Bytes of Python's language reference, two layers of width 64."""
    config = quickstart.get_config()
    config.model.update({"d_model": 64, "mlp_dim": 128, "num_heads": 2, "value_dim": 32})
    config.model.update({"pattern": (mixer,), "implementation": "recurrent"})
    config.batch_size, config.steps = 4, max(steps, 2)
    return config


def train(config: ConfigDict, steps: int) -> tuple[LanguageModel, Any, Any]:
    """The model, its parameters at initialisation and after the first steps of the config."""
    run = build(config)
    state, batches = run.init(), run.pipeline.train_iterator()
    initial = jax.device_get(state.params)
    for _ in range(steps):
        state, _ = run.train_step(state, next(batches))
    return run.model, initial, jax.device_get(state.params)


def first_outputs(model: LanguageModel, params: Any, inputs: jax.Array) -> np.ndarray:
    """What the rule of the first layer returns, before norm and gate: [B, T, N, V].

    Args:
      inputs: tokens [B, T], or what stands in place of their embeddings [B, T, D].
    """
    config = model.config
    name = f"layer_0_{config.pattern[0]}"
    block = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), params["blocks"][name])
    embedding = jnp.asarray(params["embed"]["embedding"])
    norm = nn.RMSNorm(epsilon=config.norm_eps)
    mixer: Any = MIXERS[config.pattern[0]].of_model(config)

    @jax.jit
    def outputs(x: jax.Array) -> jax.Array:
        x = x if x.ndim == 3 else embedding[x]
        _, seen = mixer.apply(
            {"params": block["mixer"]},
            norm.apply({"params": block["mixer_norm"]}, x),
            capture_intermediates=lambda _, method: method == "_rule",
            mutable=["intermediates"],
        )
        return seen["intermediates"]["_rule"][0][0]

    return np.asarray(outputs(inputs))
