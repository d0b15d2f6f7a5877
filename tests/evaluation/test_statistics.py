"""Statistics held against SciPy, published tables, brute force and simulated sweeps."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from carve_jax.evaluation import statistics

SWEEPS = 20_000


def simulated(mean: float, seeds: int, sweeps: int = SWEEPS) -> np.ndarray:
    """Differences of sweeps whose true difference is `mean` standard deviations."""
    return np.random.default_rng(seeds).normal(mean, 1.0, (sweeps, seeds))


def assert_share(hits: np.ndarray, expected: float) -> None:
    """The share of hits is `expected` within four binomial standard errors."""
    error = math.sqrt(expected * (1 - expected) / hits.size)
    assert abs(hits.mean() - expected) < 4 * error


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_paired_is_scipys_paired_t_test(alpha):
    rng = np.random.default_rng(1)
    variant, baseline = rng.normal(2.0, 0.1, (2, 7, 5))
    found = statistics.paired(variant - baseline, alpha)
    expected = stats.ttest_rel(variant, baseline, axis=-1)
    interval = expected.confidence_interval(1 - alpha)
    np.testing.assert_allclose(found.sigma, expected.statistic)
    np.testing.assert_allclose(found.p, expected.pvalue)
    np.testing.assert_allclose([found.low, found.high], interval)
    np.testing.assert_allclose(found.sd / np.sqrt(5), found.standard_error)


def test_a_sigma_of_five_seeds_is_not_a_gaussians():
    found = statistics.paired(4.5 / math.sqrt(5) + np.array([-1.0, 1.0, 0.0, 1.0, -1.0]))
    assert found.sigma == pytest.approx(4.5)
    assert found.p == pytest.approx(0.0108, abs=1e-4)
    assert found.gaussian_sigma == pytest.approx(2.55, abs=0.01)
    assert 2 * stats.norm.sf(found.gaussian_sigma) == pytest.approx(found.p)


@pytest.mark.parametrize(("seeds", "truth"), [(2, 0.0), (5, 0.0), (5, -0.7)])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, truth):
    found = statistics.paired(simulated(truth, seeds))
    assert_share((found.low < truth) & (truth < found.high), 0.95)


def test_no_effect_is_found_as_often_as_alpha():
    found = statistics.paired(simulated(0.0, 5), 0.05)
    assert_share(found.p < 0.05, 0.05)
    np.testing.assert_array_equal(found.p < 0.05, (found.low > 0) | (found.high < 0))


def test_the_effect_size_is_unbiased():
    found = statistics.paired(simulated(1.0, 5))
    error = found.effect.std() / math.sqrt(SWEEPS)
    assert abs(found.effect.mean() - 1.0) < 4 * error
    uncorrected = (found.mean / found.sd).mean()
    assert abs(uncorrected - 1.0) > 10 * error  # so the correction is what makes it so


@pytest.mark.parametrize("seeds", [2, 5])
def test_differences_without_spread(seeds):
    none = statistics.paired(np.zeros(seeds))
    assert (none.sigma, none.p, none.low, none.high) == (0.0, 1.0, 0.0, 0.0)
    same = statistics.paired(np.full(seeds, -0.1))
    assert (same.sigma, same.p, same.mean, same.sd) == (-math.inf, 0.0, -0.1, 0.0)


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="two at least"):
        statistics.paired(np.array([0.3]))


def test_sign_flips_are_all_sign_flips():
    differences = simulated(0.5, 5, 4)
    flips = np.array(list(itertools.product([-1.0, 1.0], repeat=5)))
    means = (differences @ flips.T) / 5
    brute = (np.abs(means) >= np.abs(differences.mean(-1))[:, None] - 1e-12).mean(-1)
    np.testing.assert_allclose(statistics.sign_flip_p(differences), brute)
    assert statistics.sign_flip_p(np.arange(1.0, 6.0)) == pytest.approx(1 / 16)  # none is lower


def test_run_sigmas_by_hand():
    variant, baseline = np.array([1.0, 3.0]), np.array([6.0, 6.0])
    assert statistics.run_sigmas(variant, baseline) == pytest.approx(-4.0)  # spread √((2 + 0)/2)
    assert math.isnan(statistics.run_sigmas(baseline, baseline))


def test_holm_is_closed_testing():
    """A hypothesis falls when every set of hypotheses that holds it does (Bonferroni's test)."""
    p = np.array([0.011, 0.04, 0.012, 0.3, 0.001])
    sets = [s for k in range(1, 6) for s in itertools.combinations(range(5), k)]
    closed = [max(min(1.0, len(s) * p[list(s)].min()) for s in sets if i in s) for i in range(5)]
    found = statistics.holm(p)
    np.testing.assert_allclose(found, closed)
    assert (found >= stats.false_discovery_control(p)).all()  # it promises more, so it finds less
    assert statistics.holm(np.array([])).shape == (0,)


def test_holm_keeps_a_reports_errors_to_alpha():
    sweeps = np.random.default_rng(0).normal(size=(2_000, 6, 5))
    p = statistics.paired(sweeps).p
    any_error = np.array([statistics.holm(row).min() < 0.05 for row in p])
    assert_share(any_error, 0.05)
    assert (p.min(-1) < 0.05).mean() > 0.2  # what it mends


@pytest.mark.parametrize(("seeds", "effect"), [(3, 2.0), (5, 0.4), (5, 1.5)])
def test_power_is_how_often_an_effect_is_found(seeds, effect):
    assert_share(
        statistics.paired(simulated(effect, seeds)).p < 0.05, float(statistics.power(effect, seeds))
    )


def test_seeds_needed_are_those_of_published_tables():
    """The tables are of a two-sided paired t test at 0.05 and power 0.8, as G*Power gives them."""
    found = [statistics.seeds_needed(effect, 1.0) for effect in (0.2, 0.5, -0.8, 1.0)]
    assert found == [199, 34, 15, 10]
    assert statistics.seeds_needed(1e-3, 1.0) is None
    assert statistics.seeds_needed(0.0, 1.0) is None
    assert statistics.seeds_needed(1e6, 1.0) == statistics.seeds_needed(1.0, 0.0) == 2


@pytest.mark.parametrize("seeds", [2, 5, 100])
def test_detectable_differences_have_the_power_asked_for(seeds):
    difference = statistics.detectable(3.0, seeds, 0.9)
    assert statistics.power(difference / 3.0, seeds) == pytest.approx(0.9)
