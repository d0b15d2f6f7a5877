"""A language model as a Flax NNX module, through Flax's bridge, with one step of NNX's optimizer.

`nnx.bridge.ToNNX` wraps any module of the library; from then on it is an NNX module like any other:
its parameters are `nnx.Param`, and `nnx.value_and_grad` and `nnx.Optimizer` take it.

Command: python -m examples.nnx_bridge
Run time: about a minute of a CPU core, most of it compilation.
"""

import jax.numpy as jnp
import optax
from flax import nnx

from carve_jax import LanguageModel, LMConfig

TEXT = b"what the memory returned decides what it erases. "
CONFIG = LMConfig(d_model=64, layers=2, mlp_dim=128, num_heads=2, key_dim=16, value_dim=16)


def main(steps: int = 100, config: LMConfig = CONFIG) -> list[float]:
    """Learns one sentence by heart; returns the loss of every step, in nats per byte."""
    tokens = jnp.asarray([list(TEXT)])
    model = nnx.bridge.lazy_init(
        nnx.bridge.ToNNX(LanguageModel(config), rngs=nnx.Rngs(0)), tokens[:, :-1]
    )
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss_of(model):
            logits, _ = model(tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        loss, gradient = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradient)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(steps)]
    print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at step {steps}")
    return losses


if __name__ == "__main__":
    main()
