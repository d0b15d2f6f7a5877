"""The rule's inputs and our contenders: they compute the rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.gated_delta import gated_delta_rule
from experiments.measuring.rule_calls import (
    Shape,
    ours,
    rule_arguments,
    rule_contender,
    rule_inputs,
)
from pallas_kernels.blocks.decay import LOWEST_ANCHORED

TINY = Shape(1, 32, 1, 16)


@pytest.mark.parametrize("implementation", ["chunked", "recurrent"])
def test_our_contender_runs_the_rule(implementation: str) -> None:
    compiled, arguments, _ = ours(TINY, "gdn2", implementation)
    output, gradients = compiled(*arguments)
    expected, _ = gated_delta_rule(*arguments, implementation="recurrent")
    np.testing.assert_allclose(output, expected, atol=1e-5)
    assert [g.shape for g in gradients] == [a.shape for a in arguments]


def test_carve_with_its_content_gate_is_another_rule() -> None:
    compiled, arguments, _ = ours(Shape(1, 96, 1, 16), "carve", "chunked", backward=False)
    x = rule_inputs(Shape(1, 96, 1, 16))
    blind, _ = gated_delta_rule(*arguments[:4], x["erase"], x["head_write"])
    output = compiled(*arguments)
    np.testing.assert_allclose(output[:, :64], blind[:, :64], atol=1e-5)
    assert float(jnp.abs(output[:, 64:] - blind[:, 64:]).max()) > 1e-4


def test_inputs_have_the_dtype_but_for_the_decay() -> None:
    x = rule_inputs(TINY, "bfloat16")
    assert {name for name, a in x.items() if a.dtype != jnp.bfloat16} == {"log_decay"}
    assert float(x["log_decay"].max()) < 0
    assert float(rule_inputs(Shape(1, 1024, 16, 128))["log_decay"].min()) > LOWEST_ANCHORED
    full = rule_inputs(TINY)
    plain = jax.jit(functools.partial(gated_delta_rule, implementation="recurrent"))
    expected, _ = plain(*rule_arguments(full, "gdn2"))
    compiled, arguments, _ = rule_contender(full, "gdn2", "recurrent", backward=True)
    output, gradients = compiled(*arguments)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    assert [g.shape for g in gradients] == [a.shape for a in rule_arguments(full, "gdn2")]
