"""A candidate on trial: only what is right is timed."""

import math

import jax.numpy as jnp
import pytest

from experiments.benchmarks import tile_trial
from experiments.measuring.rule_calls import Shape, rule_contender, rule_inputs
from pallas_kernels.tiling import Tiles

START = Tiles(chunk=32, warps=8, stages=2)


def test_keys_resemble_each_other_and_keep_their_norm() -> None:
    x = rule_inputs(Shape(1, 64, 2, 16))
    key = tile_trial.correlated(x)["key"]
    assert float(jnp.abs(jnp.linalg.norm(key, axis=-1) - 1).max()) < 1e-5
    cosines = jnp.einsum("bthk,bshk->bhts", key, key)
    assert float(cosines.mean()) > 0.5 > abs(float(jnp.mean(x["key"])))


def test_the_largest_difference_counts_and_nan_with_it() -> None:
    left, right = (jnp.ones(4), jnp.ones(4)), (jnp.ones(4), jnp.full(4, 2.0))
    assert tile_trial.difference(left, left) == 0
    assert tile_trial.difference(left, right) == pytest.approx(0.5)
    assert math.isnan(tile_trial.difference((jnp.full(4, jnp.nan), jnp.ones(4)), left))


@pytest.mark.parametrize("rule", ["gdn2", pytest.param("carve", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("factor", "dropped"), [(1.0, None), (1.5, "off by"), (math.nan, "off by nan")]
)
def test_a_trial_times_only_what_is_right(
    factor: float, dropped: str | None, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def made(x, rule, implementation, backward, tiles=None):
        calls.append((rule, tiles))
        x = x if tiles is None else x | {"cotangent": x["cotangent"] * factor}
        return rule_contender(x, rule, "recurrent", backward)

    monkeypatch.setattr(tile_trial, "rule_contender", made)
    monkeypatch.setattr(
        tile_trial, "median_seconds", lambda timed, *_, **__: dict.fromkeys(timed, 2.0)
    )
    outcome = tile_trial.Trial(Shape(1, 8, 1, 16), "float32", rule, 1).measure(START)
    assert calls == [(rule, None), (rule, START)]
    if dropped is None:
        assert outcome == 2.0
    else:
        assert isinstance(outcome, str)
        assert f"{rule} is {dropped}" in outcome
