"""Train steps of the gpu suite: what is run and counted, at tiny sizes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import train_steps
from experiments.benchmarks.train_steps import (
    TrainPlan,
    compare_mixers,
    measure_training,
    print_training,
    training_program,
)
from experiments.measuring import train_steps as measuring
from experiments.measuring.train_steps import Cost, Training

MODEL = {
    "vocab_size": 32, "d_model": 16, "layers": 1, "mlp_dim": 16, "num_heads": 1, "key_dim": 16,
    "value_dim": 16,
}  # fmt: skip


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
    return Training(lowered.compile(), init, make_batch, rows, Cost(100, 600.0), {})


def test_training_takes_the_most_rows_that_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_steps, "training_program", fake_program)
    monkeypatch.setattr(measuring, "device_bytes", lambda: 12_000.0)
    plan = TrainPlan(rows=(4, 2, 1), length=1000)
    figures = measure_training(plan, 1)
    for part in figures["mixers"].values():
        assert list(part["left_out"]) == ["4 rows"]  # 16 kB of tokens, and a state
        assert part["rows"] == 2
        assert part["remat"] == "full"
        assert part["tokens_per_second"] == 2 * 1000 / part["median_seconds"]
        assert part["parameters"] == 100
    assert figures["ratio"] > 0
    assert {m: part["finite"] for m, part in figures["mixers"].items()} == {
        "gdn2": True, "carve": False,
    }  # fmt: skip
    print_training(figures)
    printed = capsys.readouterr().out
    assert printed.count("not finite") == 1
    assert "train step, carve / gdn2" in printed
    monkeypatch.setattr(measuring, "device_bytes", lambda: 1.0)
    figures = measure_training(plan, 1)
    assert figures["ratio"] is None
    assert "4 rows: needs" in figures["mixers"]["carve"]["left_out"]


def test_batches_of_other_sizes_have_no_ratio() -> None:
    part = {"median_seconds": 1.0, "peak_bytes": 1, "rows": 4}
    found = {"gdn2": part, "carve": {**part, "rows": 2}}
    assert compare_mixers(TrainPlan(), found)["ratio"] is None
    assert compare_mixers(TrainPlan(), {"gdn2": part, "carve": part})["ratio"] == 1.0


@pytest.mark.slow
def test_a_plan_s_pattern_is_what_is_trained() -> None:
    model = {**MODEL, "layers": 2, "pattern": ["gdn2", "swa"], "attention_heads": 1}
    program = training_program(TrainPlan(model, length=8, implementation="recurrent"), "any", 1)
    state, _ = program.step(program.init(), program.make_batch())
    assert list(state.params["blocks"]) == ["layer_0_gdn2", "layer_1_swa"]
    assert program.cost.parameters == sum(x.size for x in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_a_training_program_trains_the_mixer_asked_for() -> None:
    plan = TrainPlan(MODEL, length=8, implementation="recurrent")
    program = training_program(plan, "gdn2", 2)
    state, metrics = program.step(program.init(), program.make_batch())
    assert list(state.params["blocks"]) == ["layer_0_gdn2"]
    assert bool(state.healthy)
    assert int(state.step) == 1
    assert float(metrics.sums.tokens) == 16
