"""The benchmark's bookkeeping; its timings are measured by its command, never by a test."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.ops.gated_delta import gated_delta_rule
from experiments import benchmark, cli
from experiments.measuring.timing import Contender, contender, median_seconds, with_gradients

TINY = benchmark.Shape(1, 32, 1, 16)


def test_contenders_take_turns_and_the_slow_sit_out() -> None:
    order = []

    def compiled(name: str, seconds: float = 0.0):
        def run() -> jax.Array:
            order.append(name)
            return jnp.zeros(())

        return Contender(run, (), 0)

    medians = median_seconds({"a": compiled("a"), "b": compiled("b")}, repeats=4)
    assert order == ["a", "a", "b", "b"] * 4
    assert set(medians) == {"a", "b"}
    order.clear()
    median_seconds({"a": compiled("a")}, repeats=9, seconds=0.0)
    assert len(order) == 2 * 3


def test_gradients_of_every_argument_are_timed() -> None:
    run = with_gradients(lambda x, y: x * y, jnp.full(3, 2.0))
    output, (dx, dy) = run(jnp.full(3, 3.0), jnp.full(3, 5.0))
    np.testing.assert_array_equal(output, 15.0)
    np.testing.assert_array_equal(dx, 10.0)
    np.testing.assert_array_equal(dy, 6.0)


def test_a_contender_counts_its_memory() -> None:
    small = contender(lambda x: x + 1, jnp.zeros(1000))
    assert small.peak_bytes >= 8000


@pytest.mark.parametrize("implementation", ["chunked", "recurrent"])
def test_our_contender_runs_the_rule(implementation: str) -> None:
    compiled, arguments, _ = benchmark.ours(TINY, "gdn2", implementation)
    output, gradients = compiled(*arguments)
    expected, _ = gated_delta_rule(*arguments, implementation="recurrent")
    np.testing.assert_allclose(output, expected, atol=1e-5)
    assert [g.shape for g in gradients] == [a.shape for a in arguments]


def test_carve_with_its_content_gate_is_another_rule() -> None:
    compiled, arguments, _ = benchmark.ours(
        benchmark.Shape(1, 96, 1, 16), "carve", "chunked", backward=False
    )
    x = benchmark.rule_inputs(benchmark.Shape(1, 96, 1, 16))
    blind, _ = gated_delta_rule(*arguments[:4], x["erase"], x["head_write"])
    output = compiled(*arguments)
    np.testing.assert_allclose(output[:, :64], blind[:, :64], atol=1e-5)
    assert float(jnp.abs(output[:, 64:] - blind[:, 64:]).max()) > 1e-4


def test_a_missing_peer_is_said_and_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ejkernel", None)
    reason = benchmark.ejkernel(TINY)
    assert isinstance(reason, str)
    assert "not installed" in reason
    assert benchmark.ratio({"ours": 1.0}, "ours", "ejkernel gdn") is None


def test_the_floor_grows_with_the_tokens() -> None:
    rates = {"flop_per_second": 1e9, "bytes_per_second": 1e9}
    one = benchmark.floors(benchmark.Shape(1, 64, 1, 64), rates)
    eight = benchmark.floors(benchmark.Shape(2, 128, 2, 64), rates)
    assert eight["flop"] == 8 * one["flop"] == 8 * 64 * (15 * 64 * 64 + 20 * 64 * 64)
    assert eight["bytes_seconds"] == pytest.approx(8 * one["bytes_seconds"])


def test_an_unknown_suite_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(benchmark.main, ["benchmark", "--suite=gpus"]) == 2
    assert "unknown suite 'gpus'" in capsys.readouterr().err
