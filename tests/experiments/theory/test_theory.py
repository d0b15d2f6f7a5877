"""Each experiment of the theory at tiny sizes; and that each claim can be found false."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import cli
from experiments.reporting import drawing
from experiments.theory import __main__ as theory
from experiments.theory import (
    capacity,
    chunk_mean,
    costs,
    expressivity,
    figures,
    gradients,
    solve,
    stability,
    sweeping,
    transitions,
)
from experiments.theory.finding import FAILS, HOLDS, LIMITED, Check, Finding


def finding(*checks: Check) -> Finding:
    return Finding("title", "found", "claim", "setup", checks, (), {})


def test_the_verdict_follows_the_checks() -> None:
    met, missed = Check("a", 1.0, at_most=1.0), Check("b", 2.0, at_most=1.0)
    edge = missed._replace(edge=True)
    assert finding(met).verdict == HOLDS
    assert finding(met).fails_where == ""
    assert finding(met, edge).verdict == LIMITED
    assert finding(met, edge, missed).verdict == FAILS
    # Sizes that are too small to hold a claim refute none.
    assert finding(met, edge, missed).judged(quick=False) == FAILS
    assert finding(met, edge, missed).judged(quick=True) == "undecided, quick sizes"
    assert finding(met).judged(quick=True) == f"{HOLDS}, quick sizes"
    assert finding(missed).fails_where == "b: 2, claimed at most 1"
    assert finding(Check("c", float("nan"), at_least=0.0)).verdict == FAILS


# The dearest; of each, what it computes is tested below or in a file of its own.
SLOW = (
    *("costs", "gradients", "stability", "capacity", "chunk_mean", "expressivity"),
    "parallel_in_time",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in theory.EXPERIMENTS
    ],
)
def test_an_experiment_in_quick_form(name, tmp_path, capsys) -> None:
    argv = ["theory", f"--only={name}", f"--output={tmp_path}", "--quick"]
    assert cli.call(theory.main, argv) == 0
    record = json.loads((tmp_path / "theory.json").read_text())
    assert record["command"] == f"python -m experiments.theory --only={name} --quick"
    (entry,) = record["experiments"]
    assert entry["name"] == name
    assert entry["verdict"] in {f"{word}, quick sizes" for word in (HOLDS, LIMITED, "undecided")}
    assert (entry["fails_where"] == "") == entry["verdict"].startswith(f"{HOLDS},")
    assert all(np.isfinite(number["value"]) for number in entry["numbers"])
    assert all(np.isfinite(check["value"]) for check in entry["checks"])
    picture = imread(tmp_path / entry["figure"])
    assert picture.std() > 0
    assert picture.shape[1] == round(160 * drawing.WIDTH)  # of a phone, twice as fine
    svg = (tmp_path / f"{name}.svg").read_text("utf-8")
    assert drawing.BY_ITSELF in svg
    assert drawing.INK not in svg
    assert f"{name}: {entry['title']}: {entry['verdict']}" in capsys.readouterr().out


def test_nine_curves_have_nine_colours() -> None:
    looks = [figures.style(index, of=9) for index in range(9)]
    assert len({look["color"] for look in looks}) == 9
    sizes = [look["markersize"] for look in looks]
    assert sizes == sorted(sizes, reverse=True)  # none hides those before it


def test_an_unknown_experiment_is_refused(capsys) -> None:
    assert cli.call(theory.main, ["theory", "--only=sovle"]) == 2
    assert "did you mean 'solve'" in capsys.readouterr().err


def test_a_constant_mask_leaves_the_single_solve_exact() -> None:
    tile = solve.random_tile(np.random.default_rng(1), 16, 8, 4)
    same = np.full((16, 4), 0.3)
    assert solve.single_solve_error(tile, same) < solve.EXACT
    assert solve.distinct(solve.inverses(tile, same)) == 1
    other = same.copy()
    other[5, 2] = 0.9  # one token, one channel
    assert solve.single_solve_error(tile, other) > 1e-6
    assert solve.distinct(solve.inverses(tile, other)) == 2


def test_growth_is_that_of_the_product_and_none_for_a_scalar_gate() -> None:
    keys, erase = stability.pair()
    assert transitions.growth(keys, erase) == pytest.approx(1.25**0.5, abs=1e-12)
    assert transitions.norms(keys, erase).max() < stability.BOUND
    assert transitions.growth(keys, np.full((2, 2), 0.7)) < 1
    third = np.sqrt(np.array([[1 / 3, 2 / 3]]))
    assert transitions.norms(third, np.array([[1.0, 0.0]]))[0] == pytest.approx(stability.BOUND)


def test_the_slope_of_known_series_is_found() -> None:
    rng = np.random.default_rng(0)
    lengths, noise = [8, 16, 32, 64], rng.normal(size=(16, 4096, 4))
    white = chunk_mean.variances(noise, lengths)
    low, high = chunk_mean.interval(lengths, white)
    assert low < -0.5 < high
    assert high - low < 0.05
    phi, series = 0.95, np.zeros_like(noise)
    for t in range(1, noise.shape[1]):
        series[:, t] = phi * series[:, t - 1] + noise[:, t]

    def variance(length: int) -> float:  # of the mean of an AR(1), over that of one value
        lags = np.arange(1, length)
        return (1 + 2 * ((1 - lags / length) * phi**lags).sum()) / length

    expected = chunk_mean.slope(lengths, np.array([[variance(length) for length in lengths]]))
    found = chunk_mean.slope(lengths, chunk_mean.variances(series, lengths))
    assert expected > -0.35
    assert found == pytest.approx(expected, abs=0.05)


def test_a_blind_gate_is_told_from_one_that_sees() -> None:
    assert expressivity.value_dependence(carve=False) < 1e-5
    assert expressivity.value_dependence(carve=True) > 0.1
    assert expressivity.floor(np.array([0.5])) == pytest.approx(0.4 / 3)
    task = expressivity.make_task(4, 2)
    assert expressivity.error(task.target, task.target) == 0


def test_reads_beyond_what_the_delta_rule_can_hold_err() -> None:
    key, value = capacity.pairs(2, 8, 8)
    turned = capacity.orthogonal(key)
    assert capacity.read_error(capacity.stored("deltanet", turned, value), turned, value) < 1e-5
    assert capacity.read_error(capacity.stored("deltanet", key, value), key, value) > 0.1


def test_costs_are_compared_by_rank_and_by_what_the_choice_loses() -> None:
    predicted, measured = np.array([3.0, 1.0, 2.0]), np.array([9.0, 4.0, 2.0])
    assert costs.ranks_agree(predicted, predicted) == pytest.approx(1)
    assert costs.ranks_agree(predicted, -predicted) == pytest.approx(-1)
    assert costs.regret(predicted, measured) == 2
    assert costs.crossing((10, 20), np.array([5.0, 5.0]), np.array([2.0, 3.0])) == 40
    assert np.isnan(costs.crossing((10, 20), np.array([5.0, 5.0]), np.array([3.0, 3.0])))


def test_gradients_are_compared_array_by_array() -> None:
    tree = {"a": np.array([1.0, -2.0]), "b": np.array([1e-6])}
    assert gradients.largest_difference(tree, tree) == 0
    changed = {**tree, "b": np.array([2e-6])}
    assert gradients.largest_difference(changed, tree) == pytest.approx(1)


def test_a_random_up_projection_takes_the_place_of_zeros() -> None:
    params = {"mixer": {"content_up": np.zeros((2, 50, 50)), "content_down": np.ones(3)}}
    found = gradients.with_content(params, 10.0)["mixer"]
    assert found["content_up"].std() == pytest.approx(10, rel=0.05)
    assert (found["content_down"] == 1).all()
    flows = {"P_up = 0": np.ones(32), "trained": np.ones(32)}
    flows |= {f"P_up random, {s:g}": np.full(32, s) for s in gradients.STRENGTHS}
    _, largest, far = gradients.time_checks(flows, 32)
    assert (largest.met, far.met) == (False, True)


def test_the_content_gate_alone_can_make_a_state_grow_and_no_gate_cannot() -> None:
    assert stability.closed_loop(4, 50.0)[-1] > 10
    assert stability.closed_loop(4, 0.0)[-1] < 0.1
    assert stability.closed_loop(4, 50.0, size=1e-3)[-1] < 1e-3


@pytest.mark.slow
def test_each_sweep_makes_one_more_gate_chunk_exact_and_no_fewer_do_the_worst_case() -> None:
    found = sweeping.course(sweeping.relay(8), to_the_end=True)
    assert found.prefix < 1e-6
    assert found.errors[-1] < 1e-6
    assert 4 <= found.needed <= found.chunks
    # Anderson's mixing looks back on sweeps in which a chunk was wrong.
    assert sweeping.course(sweeping.relay(8), mixed=True, to_the_end=True).prefix > 0.1
