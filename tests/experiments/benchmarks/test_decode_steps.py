"""Decode steps of the gpu suite: what is run and counted, at tiny sizes."""

import numpy as np

from experiments.benchmarks.decode_steps import (
    DecodePlan,
    decode_contender,
    decode_inputs,
    decode_sizes,
    decode_steps,
    measure_decode,
)
from pallas_kernels.decode.step import plain_step


def test_decode_carries_the_state_from_step_to_step() -> None:
    plan = DecodePlan((2,), 2, 16, "float32", ("pallas",), interpret=True)
    inputs, memory = decode_inputs(plan, 2)
    for _ in range(3):
        output, memory = plain_step(inputs, memory, 16**-0.5)
    entry = decode_contender(plan, 2, "pallas", 3)
    (carried_output, carried_memory), _ = entry.compiled()
    np.testing.assert_allclose(carried_output, output, atol=1e-6)
    np.testing.assert_allclose(carried_memory, memory, atol=1e-6)
    state = 4 * 2 * 2 * 16 * 16
    assert decode_sizes(plan, 2) == (2 * state + 4 * 2 * 2 * 7 * 16, state)


def test_the_steps_of_a_loop_do_not_depend_on_what_is_measured() -> None:
    assert decode_steps(DecodePlan(), 3_000_000_000, 0.03) == 30
    assert decode_steps(DecodePlan(most_steps=50), 1, 0.03) == 50
    assert decode_steps(DecodePlan(), 1 << 40, 0.0) == 8


def test_a_backend_that_cannot_run_is_left_out() -> None:
    plan = DecodePlan((1,), 1, 16, backends=("triton",), interpret=True, most_steps=8)
    figures = measure_decode(plan, 1e9, 1, 0.0)
    assert figures["batches"] == {"1": {}}
    assert "no interpret mode" in figures["left_out"]["triton, batch 1"]
