"""Curves of runs are those of their metrics."""

import pytest

from carve_jax.errors import UserError
from carve_jax.training.reports.plot import compare_runs


def test_runs_beside_one_another():
    fast = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "eval_accuracy": 0.5}]
    slow = [{"step": 4, "loss": 2.5, "eval_accuracy": 0.25}]
    runs = {"fast": [fast, fast[1:]], "slow": [slow]}
    figure = compare_runs(runs, "loss", levels={"guess": 4.0})
    (axes,) = figure.axes
    first, again, second, level = axes.lines
    assert first.get_xydata().tolist() == [[1, 3], [2, 2]]
    assert second.get_xydata().tolist() == [[4, 2.5]]
    assert set(level.get_ydata()) == {4.0}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["fast", "slow"]
    assert again.get_xydata().tolist() == [[2, 2]]
    assert first.get_color() == again.get_color() != second.get_color()
    assert axes.get_ylabel() == "loss"
    (held_out, _) = compare_runs({"a": [fast], "b": [slow]}, "eval_accuracy").axes[0].lines
    assert held_out.get_xydata().tolist() == [[2, 0.5]]
    with pytest.raises(UserError, match="a run of 'fast' has no 'los'"):
        compare_runs({"fast": [fast]}, "los")
