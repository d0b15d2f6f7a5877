"""What the pictures show: frontiers, bands, and names that do not overlap."""

import numpy as np
import pytest

from experiments.reporting import drawing, figures
from experiments.reporting.sweep import Metric, read_sweep
from tests.experiments.sweeps.made_up import ACCURACY, BITS


def test_the_frontier():
    points = {
        "best": (5.0, [1.0]),
        "cheap": (1.0, [3.0, 3.0]),
        "beaten": (5.0, [2.0]),
        "as_cheap": (1.0, [3.0]),
        "worst": (6.0, [4.0]),
    }
    assert figures.frontier(points, more_is_better=False, lower=True) == {
        "best", "cheap", "as_cheap",
    }  # fmt: skip
    assert figures.frontier(points, more_is_better=True, lower=False) == {"worst"}


def test_names_are_spread_apart_in_order():
    heights = [0.1, 0.5, 0.5, 0.52, 0.9]
    found = drawing.spread(heights, 0.1)
    assert (np.diff(found) >= 0.1 - 1e-9).all()
    np.testing.assert_allclose(found, [0.1, 0.5067 - 0.1, 0.5067, 0.5067 + 0.1, 0.9], atol=1e-4)


def test_bands_and_what_sets_the_scale(written):
    sweep = read_sweep(written.parent)
    task = sweep.tasks[0]
    runs = sweep.of(task, "gdn2")
    tokens, low, mean, high = figures.band(runs, task.metrics[0])
    finals = [run.final(BITS["name"]) for run in runs]
    assert tokens.tolist() == [50_000, 100_000, 150_000, 200_000]
    assert (low[-1], high[-1]) == (min(finals), max(finals))
    assert mean[-1] == pytest.approx(np.mean(finals))
    runs[0].lines[1][BITS["name"]] = None  # one run lacks a step
    assert figures.band(runs, task.metrics[0])[0].tolist() == [50_000, 150_000, 200_000]
    gone = next(run for run in sweep.runs if run.id == "text.gla.s1")
    before = figures.curves(sweep, task).axes[0]
    gone.lines[1][BITS["name"]] = 1e9
    after = figures.curves(sweep, task).axes[0]
    assert before.get_ylim() == after.get_ylim()
    assert len(after.lines) == 4 + 2 + 2  # the dotted ones, and their crosses


def test_few_evaluations_give_way_to_training(small):
    sweep = read_sweep(small(seeds=2))
    task = sweep.tasks[0]
    assert figures.curve_metric(sweep, task) == task.metrics[0]
    for each in sweep.runs:
        for line in each.lines:
            line["bits_per_byte"] = line[BITS["name"]]
        for line in each.lines[:-1]:
            del line[BITS["name"]]
    again = task._replace(
        metrics=(Metric(**ACCURACY), *task.metrics)
    )  # which training does not keep
    assert figures.curve_metric(sweep, again).name == "bits_per_byte"
    found = figures.curve_metric(sweep, task)
    assert (found.name, found.title) == ("bits_per_byte", "training bits per byte")


def test_no_picture_of_a_cost_that_is_the_same(small):
    sweep = read_sweep(small(seeds=2))
    drawn = {c.name for c in figures.COSTS if figures.pareto(sweep, sweep.tasks[0], c)}
    assert drawn == {"parameters"}


def test_a_figure_is_the_same_twice(small):
    sweep = read_sweep(small(seeds=2))
    first, second = (
        drawing.to_svg(figures.curves(sweep, sweep.tasks[0]), "curves.png") for _ in range(2)
    )
    assert first == second
