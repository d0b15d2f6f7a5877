"""What a run says of itself: waits, norms, speed, profiles."""

import threading
import time

import numpy as np
import pytest

from carve_jax.accounting import costs
from carve_jax.errors import UserError
from carve_jax.training import loop
from carve_jax.training.processes.watchdog import Watchdog
from carve_jax.training.reports.metrics import Throughput, read_metrics
from carve_jax.training.reports.utilisation import ideal_step_seconds, peak_flops
from carve_jax.training.run import build
from carve_jax.training.settings import make_model_config, read_settings
from tests.training.helpers import ANY_LAYER, tiny_config, train


class Stalling:
    """A pipeline, or its iterator, whose third batch is late."""

    def __init__(self, inner):
        self._inner = inner
        self._drawn = 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def train_iterator(self):
        return Stalling(self._inner.train_iterator())

    def __next__(self):
        self._drawn += 1
        if self._drawn == 3:
            time.sleep(1.5)
        return next(self._inner)


def test_a_source_that_stalls_is_named_and_its_time_is_told(tmp_path, monkeypatch):
    def stalling(config):
        run = build(config)
        return run._replace(pipeline=Stalling(run.pipeline))

    monkeypatch.setattr(loop, "build", stalling)
    _, lines = train(
        tiny_config(**ANY_LAYER, steps=4, watchdog_seconds=0.5, log_every=4, eval_every=4), tmp_path
    )
    told = [line for line in lines if "the data of step 3, from 'mqar', in __next__ (" in line]
    assert told
    assert told[0].startswith("process 1 of 1 (")
    assert "test_reports.py:" in told[0]
    (line,) = read_metrics(tmp_path)
    # Of three timed steps, two waited for nothing.
    assert 0.5 <= line["data_wait_seconds"] < line["step_seconds"]


def test_the_watchdog_tells_a_wait_whenever_it_has_doubled():
    lines = []
    with Watchdog(0.1, lines.append) as watchdog:
        for _ in range(20):
            watchdog.waits_for("nothing long")
            time.sleep(0.01)
        assert lines == []
        watchdog.waits_for("a sleep")
        time.sleep(1.0)
    assert 2 <= len(lines) <= 4  # after 0.1, 0.2, 0.4 and 0.8 s, or later
    assert all("for a sleep, in test_the_watchdog" in line for line in lines)
    with Watchdog(0, lines.append):
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}


def test_a_profile_of_some_steps(tmp_path):
    _, lines = train(tiny_config(**ANY_LAYER, steps=4, profile_steps=(2, 3)), tmp_path)
    assert f"profile of steps 2 to 3: {tmp_path / 'profile'}" in lines
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_norms_of_every_layer(tmp_path):
    changes = {"steps": 4, "log_every": 3, "log_norms_every": 2}
    train(tiny_config(**ANY_LAYER, model__layers=2, **changes), tmp_path)
    metrics = read_metrics(tmp_path)
    assert [line["step"] for line in metrics] == [2, 3, 4]
    assert not [name for name in metrics[1] if "/" in name]
    for line in (metrics[0], metrics[2]):
        for kind in ("grad_norm", "param_norm"):
            parts = [value for name, value in line.items() if name.startswith(f"{kind}/")]
            np.testing.assert_allclose(np.linalg.norm(parts), line[kind], rtol=1e-5)
        layers = {name for name in line if name.startswith("update_norm/blocks/")}
        assert {f"update_norm/blocks/layer_0_attention/mixer/{i}" for i in (0, 1)} <= layers


def test_peaks_by_device_kind():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("cpu") is None


def test_utilisation_of_a_step():
    model = make_model_config(tiny_config())
    flops = costs(model, context=4096).train_flops * 8 * 4096
    found = ideal_step_seconds(model, 8 * 4096, 4096, ["NVIDIA H100 80GB HBM3"] * 4)
    assert found == pytest.approx(flops / (4 * 989e12))
    assert ideal_step_seconds(model, 4096, 4096, ["NVIDIA H100 80GB HBM3", "cpu"]) is None
    speed = Throughput(ideal_step_seconds=0.05)
    assert speed.figures() == {}
    speed.add(7)  # the first step compiles
    time.sleep(0.1)
    speed.add(7)
    figures = speed.figures()
    assert figures["mfu"] == pytest.approx(0.05 / figures["step_seconds"])
    assert figures["step_seconds"] >= 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_best": -1}, "config.keep_best is -1, but must be a whole number of at least 0"),
        (
            {"keep_best": 1, "checkpoint_every": 4, "eval_every": 3},
            "config.keep_best needs checkpoints that were evaluated at their step, but "
            "config.checkpoint_every is 4 and config.eval_every is 3",
        ),
        (
            {"watchdog_seconds": -2.0},
            "watchdog_seconds is -2.0, but must be a number of at",
        ),
        ({"profile_steps": (3, 2)}, r"config.profile_steps is \(3, 2\), but must be the first and"),
        ({"profile_steps": (3,)}, r"config.profile_steps is \(3,\), but must be the first and"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        read_settings(tiny_config(**changes))
