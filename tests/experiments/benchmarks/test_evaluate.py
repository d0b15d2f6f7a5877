"""The evaluate suite on a model and lengths that take seconds."""

import pytest

from carve_jax.errors import UserError
from experiments.benchmarks import evaluate
from experiments.benchmarks.evaluate import Plan, evaluate_suite, make_plan

MODEL = {
    "vocab_size": 16,
    "d_model": 8,
    "layers": 1,
    "mlp_dim": 8,
    "num_heads": 1,
    "key_dim": 4,
    "value_dim": 4,
    "implementation": "recurrent",
}


@pytest.mark.slow
def test_shares_and_growth(monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "CALL", 512)
    plan = Plan(("gdn2",), contexts=3, documents=1, document=600, lengths=(64, 600), model=MODEL)
    saved = []
    figures = evaluate_suite(1, saved.append, plan)
    at = figures["patterns"]["gdn2"]
    assert at["share_of_forward"]["forward pass"] == 1.0
    assert len(at["share_of_forward"]) == 5
    work = at["multiple_choice_work"]
    assert work["shared"]["requested"] == work["alone"]["requested"]
    assert work["shared"]["read"] < 0.5 * work["alone"]["read"]
    assert set(at["growth"]["lengths"]) == {"64", "600"}
    assert all(entry["seconds"] > 0 for entry in at["growth"]["lengths"].values())
    assert len(saved) == 2
    assert "share of forward" in capsys.readouterr().out


def test_plans():
    assert make_plan(["64", "128"], ("carve",)).patterns == ("carve",)
    assert make_plan([], ()).lengths[-1] == 131_072
    with pytest.raises(UserError, match="--only"):
        make_plan([], ("nothing",))
