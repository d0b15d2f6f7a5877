"""The guard: what is a spike, and what becomes of the run."""

import itertools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.errors import UserError
from carve_jax.training import loop
from carve_jax.training.guard import Guard
from carve_jax.training.processes.stopping import Interrupted, SpikeFound
from carve_jax.training.reports.metrics import read_metrics
from carve_jax.training.run import build
from carve_jax.training.settings import read_settings
from tests.training.helpers import ANY_LAYER, figures, tiny_config, train


def limit_of(values, factor):
    """The definition, in NumPy."""
    median = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - median))
    return median + factor * max(spread, 1e-3 * abs(median))


def test_limits_are_those_of_median_and_mad():
    guard = Guard(loss_factor=3.0, grad_factor=5.0, window=5)
    judge, state = jax.jit(guard.judge), guard.init()
    rng = np.random.default_rng(0)
    kept: list[tuple[float, float]] = []
    spikes = 0
    for number in range(40):
        loss, norm = 3 + rng.normal(), np.exp(rng.normal())
        finite = number not in (2, 21)  # counts before the window is full too
        verdict, state = judge(state, jnp.float32(loss), jnp.float32(norm), jnp.bool_(finite))
        expected = [np.inf, np.inf]
        if len(kept) >= 5:
            losses, norms = np.array(kept[-5:], np.float32).T
            expected = [limit_of(losses, 3.0), limit_of(norms, 5.0)]
        np.testing.assert_allclose([verdict.loss_limit, verdict.grad_norm_limit], expected, 1e-5)
        spike = not finite or loss > expected[0] or norm > expected[1]
        assert bool(verdict.spike) == spike
        spikes = spikes + 1 if spike else 0
        assert int(verdict.in_a_row) == spikes
        if not spike:
            kept.append((loss, norm))
    assert 0 < len(kept) < 38


def test_an_outlier_does_not_move_the_limit():
    guard = Guard(loss_factor=5.0, window=9)
    state = guard.init()
    for loss in [2.0, 2.1, 1.9, 2.0, 50.0, 2.1, 1.9, 2.0, 2.1]:  # the window fills unjudged
        _, state = guard.judge(state, jnp.float32(loss), jnp.float32(1), jnp.bool_(True))
    verdict, _ = guard.judge(state, jnp.float32(4.0), jnp.float32(1), jnp.bool_(True))
    assert bool(verdict.spike)
    assert guard.why(jax.device_get(verdict), 1.0).startswith("loss 4 is above its limit of 2.")
    assert np.isinf(verdict.grad_norm_limit)


def guarded(action, **changes):
    options = {"guard__grad_factor": 1e6, "guard__action": action, "checkpoint_every": 2}
    return tiny_config(**(ANY_LAYER | options | changes))


def poison(monkeypatch, numbers):
    """From now on, runs find NaN in the batches of these numbers, however often they read them."""
    batches = build(tiny_config()).pipeline.train_iterator()
    tokens = [next(batches)["tokens"] for _ in range(max(numbers))]
    bad = [tokens[number - 1] for number in numbers]

    def poisoned(config):
        run = build(config)

        def train_step(state, batch):
            if any(np.array_equal(batch["tokens"], each) for each in bad):
                batch = {**batch, "loss_mask": batch["loss_mask"] * np.float32(np.nan)}
            return run.train_step(state, batch)

        return run._replace(train_step=train_step)

    monkeypatch.setattr(loop, "build", poisoned)


def stop_before_step(monkeypatch, number):
    """From now on, runs are asked to stop before the step of this number."""

    def stopping(config):
        run, calls = build(config), itertools.count(1)

        def train_step(state, batch):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return run.train_step(state, batch)

        return run._replace(train_step=train_step)

    monkeypatch.setattr(loop, "build", stopping)


def trained_on(config, numbers):
    """The state after these batches, taken one by one."""
    run = build(config)
    batches = run.pipeline.train_iterator()
    state = run.init()
    for number in range(1, max(numbers) + 1):
        batch = next(batches)
        if number in numbers:
            state, _ = run.train_step(state, batch)
    return jax.tree.map(np.asarray, state)


def same_bits(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_skipped_is_as_if_the_batch_had_not_been(tmp_path, monkeypatch):
    poison(monkeypatch, [3])
    state, lines = train(guarded("skip"), tmp_path)
    same_bits(state, trained_on(guarded("skip"), [1, 2, 4, 5, 6]))
    assert int(state.step) == 5
    assert "step 3: the loss or a gradient is NaN or infinite; the update was skipped" in lines
    line = read_metrics(tmp_path)[2]
    assert (line["step"], line["guard"], line["loss"]) == (3, "skip", None)
    assert all("guard" not in line for line in read_metrics(tmp_path) if line["step"] != 3)


def test_skips_follow_from_the_figures_and_survive_a_stop(tmp_path, monkeypatch):
    # A factor this small makes a spike of half of the steps.
    options = {"guard__loss_factor": 0.05, "guard__window": 2, "guard__limit": 100}
    config = guarded("skip", steps=10, **options, guard__grad_factor=0.0)
    state, _ = train(config, tmp_path / "whole")
    kept, skipped = [], []
    for line in read_metrics(tmp_path / "whole"):
        limit = limit_of(np.float32(kept[-2:]), 0.05) if len(kept) >= 2 else np.inf
        if line["loss"] > limit:
            skipped.append(line["step"])
        else:
            kept.append(line["loss"])
        assert (line.get("guard") == "skip") == (line["loss"] > limit)
    assert 1 <= len(skipped) <= 7
    assert int(state.step) == 10 - len(skipped)
    stop_before_step(monkeypatch, 6)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts")
    monkeypatch.undo()
    again, _ = train(config, tmp_path / "parts")
    same_bits(again, state)
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


@pytest.mark.parametrize("bad", [3, 4])
def test_rewound_is_as_if_the_batches_had_not_been(tmp_path, monkeypatch, bad):
    # 4 is a step of a checkpoint, and known at once; 3 is known when 4 has been dispatched.
    poison(monkeypatch, [bad])
    state, lines = train(guarded("rewind"), tmp_path)
    used = [1, 2, *range(bad + 1, bad + 5)]
    same_bits(state, trained_on(guarded("rewind"), used))
    said = "the loss or a gradient is NaN or infinite; back to step 2, and on with the data after"
    assert any(line.startswith(f"step {bad}: {said}") for line in lines)
    metrics = read_metrics(tmp_path)
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in metrics if "guard" in line] == [3]
    assert (metrics[2]["guard"], metrics[2]["guard_step"]) == ("rewind", bad)
    assert metrics[5]["tokens"] == 6 * metrics[0]["tokens"]


@pytest.mark.slow  # always: rewound to a checkpoint
def test_rewound_before_the_first_checkpoint_starts_again(tmp_path, monkeypatch):
    poison(monkeypatch, [2])
    config = guarded("rewind", steps=3)
    state, _ = train(config, tmp_path)
    same_bits(state, trained_on(config, [3, 4, 5]))


def test_too_many_are_the_end(tmp_path, monkeypatch):
    poison(monkeypatch, range(3, 9))
    said = r"stopped by config.guard at step 5: 3 spikes in a row, at last the loss or a gradient"
    with pytest.raises(SpikeFound, match=said) as stopped:
        train(guarded("skip", guard__limit=3, checkpoint_every=100), tmp_path / "skip")
    assert stopped.value.exit_code == 3
    with pytest.raises(SpikeFound, match=r"stopped by config.guard at step 3: .* is step 2 in"):
        train(guarded("rewind", guard__limit=2), tmp_path / "rewind")
    with pytest.raises(SpikeFound, match=r"at step 3: the loss or a gradient is NaN"):
        train(guarded("stop"), tmp_path / "stop")
    assert [line["step"] for line in read_metrics(tmp_path / "stop")] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guard__loss_factor": -1.0}, "guard.loss_factor is -1.0, but must be a number of at"),
        ({"guard__window": 1}, "guard.window is 1, but must be a whole number of at least 2"),
        ({"guard__limit": 0}, "guard.limit is 0, but must be a whole number of at least 1"),
        ({"guard__action": "pray"}, "guard.action is 'pray', but must be one of skip, rewind, st"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        read_settings(tiny_config(**changes))


def test_steps_without_targets_have_no_figures_to_remember():
    guard = Guard(loss_factor=3.0, window=4)
    state = guard.init()
    for loss, targets in [(2.0, True), (0.0, False), (2.1, True), (0.0, False), (1.9, True)]:
        verdict, state = guard.judge(state, loss, 1.0, jnp.bool_(True), jnp.bool_(targets))
        assert not verdict.spike
    assert int(state.applied) == 3
    assert sorted(round(float(x), 3) for x in state.losses) == [0.0, 1.9, 2.0, 2.1]  # one is free
    _, state = guard.judge(state, 2.0, 1.0, jnp.bool_(True), jnp.bool_(True))
    good, after = guard.judge(state, 2.05, 1.0, jnp.bool_(True), jnp.bool_(True))
    assert not good.spike
    bad, after = guard.judge(after, 9.0, 1.0, jnp.bool_(True), jnp.bool_(True))
    empty, after = guard.judge(after, 0.0, 0.0, jnp.bool_(True), jnp.bool_(False))
    assert bool(bad.spike)
    assert not bool(empty.spike)
    assert int(after.in_a_row) == 1  # neither a spike nor an end of them
    broken, _ = guard.judge(after, 0.0, 0.0, jnp.bool_(False), jnp.bool_(False))
    assert bool(broken.spike)
