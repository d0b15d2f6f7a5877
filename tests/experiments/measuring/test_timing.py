"""Fair timing: turns, medians and ceilings; no test measures a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.measuring.timing import (
    Carried,
    Contender,
    LeftOut,
    attempt,
    contender,
    device_ceilings,
    median_seconds,
    ratio,
    with_gradients,
)


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


def test_a_turn_is_as_many_calls_as_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    calls = []

    def run() -> jax.Array:
        calls.append(clock[0])
        clock[0] += 3.0
        return jnp.zeros(())

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    medians = median_seconds({"a": Contender(run, (), 0)}, repeats=2, turn_seconds=10.0)
    assert medians == {"a": 3.0}
    assert len(calls) == 2 + 2 * (1 + 4)  # warm-up and estimate; then a settling call and four


def test_a_carried_state_is_donated_and_handed_on() -> None:
    step = jax.jit(lambda state, x: (state + x, state * 2), donate_argnums=0)
    carried = Carried(step.lower(jnp.ones(3), jnp.ones(3)).compile(), jnp.ones(3), jnp.ones(3))
    carried()
    state, rest = carried()
    np.testing.assert_array_equal(state, 3.0)
    np.testing.assert_array_equal(rest, 4.0)


def test_an_attempt_gives_the_reason_in_a_line() -> None:
    def fail(error: Exception) -> None:
        raise error

    assert attempt(lambda: 3) == 3
    assert attempt(lambda: fail(ValueError("first\nsecond"))) == "ValueError: first"
    assert attempt(lambda: fail(LeftOut("too large"))) == "too large"


def test_ceilings_count_what_is_moved_and_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "experiments.measuring.timing.median_seconds",
        lambda *_, **__: {"product": 2.0, "copy": 4.0, "pass": 2.0},
    )
    rates = device_ceilings(1, 0.0, side=16, length=64)
    assert rates == {
        "flop_per_second": 16**3, "bytes_per_second": 8 * 32, "copy_bytes_per_second": 8 * 16,
    }  # fmt: skip


def test_a_missing_contender_has_no_ratio() -> None:
    assert ratio({"ours": 1.0}, "ours", "ejkernel gdn") is None
