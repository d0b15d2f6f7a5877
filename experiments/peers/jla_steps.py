"""Train steps of jax-linear-attention: its own models, loss and optimizer at our sizes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.measuring.train_steps import Training, cost_of, model_config, recipe
from experiments.peers.jla import Jla

# Its layers in a repeat of ours, and what its models have otherwise than ours of the same name, so
# that they have as many parameters: the output gate of its GDN-2 is of full rank, and its Mamba-2
# expands twice, to 72 heads.
LAYERS = {"gdn2": "gdn2", "kda": "kda", "gdn": "gated_deltanet", "mamba2": "mamba2"}
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "gdn2": {"mlp_dim": 5632},
    "gdn2_swa": {"mlp_dim": 6464},
    "mamba2": {"mlp_dim": 5824, "num_heads": 72},
}
MODELS = ("gdn2", "gdn2_swa", "transformer", "kda", "gdn", "mamba2")
# What its models call what ours have in `remat`; without remat it has pullbacks that keep inputs
# alone, with which it trains its own 1.3B models.
REMAT: Mapping[str, Mapping[str, Any]] = {
    "full": {"remat": "full"},
    "none": {"remat": "none", "lean_vjp": True},
}


class State(NamedTuple):
    """What its step takes and gives."""

    arrays: Any  # of the model
    moments: Any
    key: jax.Array
    healthy: jax.Array


def jla_config(jla: Jla, fields: Mapping[str, Any], remat: str) -> Any:
    """Its `ModelConfig` of a model that has these fields of our section `model`.

    Recurrent layers take the implementation of `jla` or are refused; attention takes what its
    models take by default, which is cuDNN's on a GPU.
    """
    from jla.models.config import AttentionConfig, LinearAttentionConfig, ModelConfig, SSMConfig

    ours = model_config(fields)
    heads = ours.attention_heads or ours.num_heads
    width = ours.attention_head_dim or ours.d_model // heads
    window = ours.window if "swa" in ours.pattern else None
    pattern = tuple(LAYERS.get(mixer, "attention") for mixer in ours.pattern)
    return ModelConfig(
        vocab_size=ours.vocab_size,
        d_model=ours.d_model,
        n_layers=ours.layers,
        d_ff=ours.mlp_dim,
        attention=AttentionConfig(heads, heads, width, qk_norm=False, sliding_window=window),
        linear_attention=LinearAttentionConfig(
            ours.num_heads,
            ours.num_heads,
            ours.key_dim,
            ours.value_dim,
            implementation=jla.implementation,
        ),
        ssm=SSMConfig(
            d_state=ours.key_dim, head_dim=ours.value_dim, implementation=jla.implementation
        ),
        layer_types=pattern * ours.repeats,
        norm_eps=ours.norm_eps,
        tie_embeddings=ours.tie_embeddings,
        compute_dtype=ours.compute_dtype,
        **REMAT[remat],
    )


def jla_program(
    jla: Jla, fields: Mapping[str, Any], remat: str, length: int, rows: int
) -> Training:
    """Its train step, compiled, as its trainer builds it for one device.

    The logits' gradient is formed in the forward pass, by its kernel where there is one. Documents
    are a row long, and it is given no document ids, so that it need not keep any apart.

    Args:
      jla: the package.
      fields: of our section `model`, with those of CHANGES.
      remat: one of REMAT.
      length: tokens of a row.
      rows: of a batch.

    Raises:
      ValueError: the package refuses these sizes; it says why.
    """
    import equinox as eqx
    from jla.models import build_model
    from jla.training.optimizers import create_optimizer
    from jla.training.step import LossConfig, build_train_step, lm_loss

    config, ours = jla_config(jla, fields, remat), recipe()
    optimizer = create_optimizer(
        lr=ours.peak_learning_rate,
        weight_decay=ours.weight_decay,
        betas=(ours.beta1, ours.beta2),
        max_grad_norm=ours.clip_norm,
    )
    loss = lm_loss(
        LossConfig(compute_dtype=config.compute_dtype, impl="auto", grad_in_forward=True)
    )
    its_step = build_train_step(optimizer, loss, donate=False)  # the whole state is donated below

    def build() -> Any:
        return build_model(config, key=jax.random.key(0))

    shapes = eqx.filter_eval_shape(build)
    rest = eqx.filter(shapes, lambda leaf: not isinstance(leaf, jax.ShapeDtypeStruct))

    @jax.jit
    def init() -> State:
        arrays = eqx.filter(build(), eqx.is_array)
        moments = optimizer.init(eqx.filter(arrays, eqx.is_inexact_array))
        return State(arrays, moments, jax.random.key(0), jnp.array(True))

    def step(state: State, batch: Mapping[str, jax.Array]) -> tuple[State, Any]:
        model = eqx.combine(state.arrays, rest)
        model, moments, metrics, key = its_step(model, state.moments, batch, state.key)
        healthy = state.healthy & metrics["step_applied"]
        return State(eqx.filter(model, eqx.is_array), moments, key, healthy), metrics

    def make_batch() -> dict[str, jax.Array]:
        sizes = (1, rows, length)
        tokens = jax.random.randint(jax.random.key(0), sizes, 0, config.vocab_size, jnp.int32)
        return {"input_ids": tokens, "labels": jnp.roll(tokens, -1, axis=-1)}

    lowered = jax.jit(step, donate_argnums=0).lower(
        jax.eval_shape(init), jax.eval_shape(make_batch)
    )
    cost = cost_of(model_config(fields), length, count(shapes))
    return Training(lowered.compile(), init, make_batch, rows, cost, {})


def count(model: Any) -> tuple[int, int]:
    """Parameters of one of its models, or of its shapes, and those of its matrices.

    Its matrices are the weights of what ends in `_proj`, those of the MLP, and the head.
    """
    parameters = matrices = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        names = [entry.name for entry in path if isinstance(entry, jax.tree_util.GetAttrKey)]
        parameters += leaf.size
        within = any(name.endswith("_proj") for name in names) or names[-2:] == ["down", "weight"]
        if names[-1] in ("gate_up", "head") or (within and names[-1] == "weight"):
            matrices += leaf.size
    return parameters, matrices
