"""What a rematerialised block computes twice, counted in the traced program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

from carve_jax.model import LanguageModel, LMConfig
from pallas_kernels import device

CONFIG = LMConfig(
    vocab_size=32, d_model=16, layers=2, mlp_dim=16, num_heads=1, key_dim=16, value_dim=16
)
TOKENS = jnp.zeros((1, 64), jnp.int32)


def gradient_of(pattern, implementation, remat):
    config = dataclasses.replace(
        CONFIG, pattern=(pattern,), implementation=implementation, remat=remat
    )
    model = LanguageModel(config)

    def loss(params):
        # Documents, as in training: they bring the checks of what is not finite along.
        return model.apply({"params": params}, TOKENS, segment_ids=TOKENS)[0].sum()

    return model, jax.grad(loss)


def inner(eqn):
    """The jaxprs inside an equation."""
    is_jaxpr = lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")  # noqa: E731
    leaves = jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr)
    found = [x.jaxpr if hasattr(x, "jaxpr") else x for x in leaves if is_jaxpr(x)]
    return [x for x in found if hasattr(x, "eqns")]


def live_calls(jaxpr, name, wanted=None):
    """How often a primitive is written in a jaxpr where something reads what it gives."""
    wanted = [True] * len(jaxpr.outvars) if wanted is None else wanted
    read = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and type(v) is not Literal}
    count = 0
    for eqn in reversed(jaxpr.eqns):
        used = [v in read for v in eqn.outvars]
        if not any(used) and not eqn.effects:
            continue
        if eqn.primitive.name == name:
            count += 1
        else:
            for body in inner(eqn):
                same = len(body.outvars) == len(used) and eqn.primitive.name != "scan"
                count += live_calls(body, name, used if same else None)
        read |= {v for v in eqn.invars if type(v) is not Literal}
    return count


@pytest.mark.parametrize("pattern", ["gdn2", pytest.param("carve", marks=pytest.mark.slow)])
def test_kept_rules_run_forward_once(pattern, monkeypatch):
    """Forward launches two kernels, backward two of the same and three of its own."""
    monkeypatch.setenv(device.SWITCH, "interpret")

    def launches(remat):
        model, gradient = gradient_of(pattern, "pallas", remat)
        params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
        return live_calls(jax.make_jaxpr(gradient)(params).jaxpr, "pallas_call")

    assert (launches("rule"), launches("full")) == (7, 9)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["gdn2", "carve"])
def test_gradients_are_the_same_whatever_is_kept(pattern):
    found = {}
    for remat in ("none", "rule", "rule_and_dots"):
        model, gradient = gradient_of(pattern, "chunked", remat)
        params = model.init(jax.random.key(0), TOKENS)["params"]
        found[remat] = jax.jit(gradient)(params)
    for remat in ("rule", "rule_and_dots"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            found[remat],
            found["none"],
        )
