"""Decode and train steps of the gpu suite: what is run and counted, at tiny sizes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import steps
from experiments.benchmarks.steps import (
    DecodePlan,
    Training,
    TrainPlan,
    compare_mixers,
    decode_contender,
    decode_inputs,
    decode_sizes,
    decode_steps,
    measure_decode,
    measure_training,
    print_training,
    training_program,
)
from pallas_kernels.decode.step import plain_step

MODEL = {
    "vocab_size": 32, "d_model": 16, "layers": 1, "mlp_dim": 16, "num_heads": 1, "key_dim": 16,
    "value_dim": 16,
}  # fmt: skip


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


class State(NamedTuple):
    weights: jax.Array
    healthy: jax.Array


def fake_program(plan: TrainPlan, mixer: str, rows: int) -> Training:
    def init() -> State:
        return State(jnp.zeros(100), jnp.array(mixer == "gdn2"))

    def step(state: State, batch: jax.Array) -> tuple[State, jax.Array]:
        return State(state.weights + batch.sum(), state.healthy), state.weights.sum()

    def make_batch() -> jax.Array:
        return jnp.ones((rows, plan.length))

    lowered = jax.jit(step, donate_argnums=0).lower(
        jax.eval_shape(init), jax.eval_shape(make_batch)
    )
    return Training(lowered.compile(), init, make_batch, rows, {})


def test_training_takes_the_most_rows_that_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps, "training_program", fake_program)
    monkeypatch.setattr(steps, "device_bytes", lambda: 12_000.0)
    plan = TrainPlan(rows=(4, 2, 1), length=1000)
    figures = measure_training(plan, 1)
    for part in figures["mixers"].values():
        assert list(part["left_out"]) == ["4 rows"]  # 16 kB of tokens, and a state
        assert part["rows"] == 2
    assert figures["ratio"] > 0
    assert {m: part["finite"] for m, part in figures["mixers"].items()} == {
        "gdn2": True, "carve": False,
    }  # fmt: skip
    print_training(figures)
    printed = capsys.readouterr().out
    assert printed.count("not finite") == 1
    assert "train step, carve / gdn2" in printed
    monkeypatch.setattr(steps, "device_bytes", lambda: 1.0)
    figures = measure_training(plan, 1)
    assert figures["ratio"] is None
    assert "4 rows: needs" in figures["mixers"]["carve"]["left_out"]


def test_batches_of_other_sizes_have_no_ratio() -> None:
    part = {"median_seconds": 1.0, "peak_bytes": 1, "rows": 4}
    found = {"gdn2": part, "carve": {**part, "rows": 2}}
    assert compare_mixers(TrainPlan(), found)["ratio"] is None
    assert compare_mixers(TrainPlan(), {"gdn2": part, "carve": part})["ratio"] == 1.0


@pytest.mark.slow
def test_a_training_program_trains_the_mixer_asked_for() -> None:
    plan = TrainPlan(MODEL, length=8, implementation="recurrent")
    program = training_program(plan, "gdn2", 2)
    state, metrics = program.step(program.init(), program.make_batch())
    assert list(state.params["blocks"]) == ["layer_0_gdn2"]
    assert bool(state.healthy)
    assert int(state.step) == 1
    assert float(metrics.sums.tokens) == 16
