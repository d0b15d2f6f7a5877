"""The examples run, at tiny sizes, and do what their docstrings say."""

import dataclasses

import numpy as np

from carve_jax import LMConfig
from examples import decode_with_cache, layer_in_flax, nnx_bridge
from experiments import cli
from experiments.sweeps.plan import make_plan
from tests.markdown import ROOT

TINY = LMConfig(d_model=16, layers=1, mlp_dim=16, num_heads=1, key_dim=8, value_dim=8)


def test_a_layer_in_a_flax_model_trains(capsys):
    assert 0 <= layer_in_flax.main(steps=3, rows=4) <= 1
    assert capsys.readouterr().out.startswith("step 3: loss ")


def test_the_bridge_trains(capsys):
    losses = nnx_bridge.main(steps=5, config=dataclasses.replace(TINY, implementation="recurrent"))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert "at step 5" in capsys.readouterr().out


def test_decoding_in_pieces_gives_what_one_call_gives(capsys):
    tokens = decode_with_cache.main(new=4, config=TINY)
    assert tokens.shape == (2, 4)
    assert "in one call the same: True" in capsys.readouterr().out


def test_the_sweep_is_one():
    sweep = cli.load_config(str(ROOT / "examples" / "sweep_config.py"), [])
    plan = make_plan(sweep, [])
    assert len(plan.runs) == 3 * 2


def test_each_says_how_to_run_it():
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text("utf-8")
        if path.name != "__init__.py":
            assert f"examples.{path.stem}" in text or f"examples/{path.name}" in text, path.name
            assert "\nCommand: python -m " in text, path.name
            assert "\nRun time: about " in text, path.name
            assert len(text.splitlines()) <= 80, f"{path.name} is longer than a screen"
