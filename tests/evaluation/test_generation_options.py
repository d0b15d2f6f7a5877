"""What tasks of the harness say of generation: taken as meant, or refused by its name."""

import pytest

from carve_jax.errors import UserError
from carve_jax.evaluation import generation_options
from carve_jax.evaluation.generation_options import read_options

SAMPLE = {"do_sample": True, "temperature": 0.7}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (256, (), 0.0, None, None)),
        ({"until": "x", "max_gen_toks": "5"}, (5, ("x",), 0.0, None, None)),
        ({"until": ("x", "y"), "max_new_tokens": 7.0}, (7, ("x", "y"), 0.0, None, None)),
        ({**SAMPLE, "top_k": 0, "top_p": 1}, (256, (), 0.7, None, None)),
        ({**SAMPLE, "top_k": -1}, (256, (), 0.7, None, None)),
        ({**SAMPLE, "top_k": "40", "top_p": "0.9"}, (256, (), 0.7, 40, 0.9)),
        ({"do_sample": "true", "temperature": "0.5"}, (256, (), 0.5, None, None)),
        ({"do_sample": "false", "temperature": "0.5"}, (256, (), 0.0, None, None)),
        ({"temperature": 0.5}, (256, (), 0.5, None, None)),
        ({"temperature": 0.0, "top_k": None, "until": None}, (256, (), 0.0, None, None)),
        ({"do_sample": True}, (256, (), 1.0, None, None)),
        ({"do_sample": False, "top_k": 5, "num_beams": 1}, (256, (), 0.0, None, None)),
    ],
)
def test_options_are_taken_as_meant(given, expected, capsys):
    found = read_options(given, 256)
    assert found == expected
    assert found.drawn == (expected[2] > 0)
    assert "not supported" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        {**SAMPLE, "top_p": 0},
        {**SAMPLE, "top_p": 1.5},
        {**SAMPLE, "top_p": "nan"},
        {**SAMPLE, "top_k": 1.5},
        {"do_sample": True, "temperature": -1},
        {"do_sample": True, "temperature": "hot" * 10**6},
        {"do_sample": "perhaps"},
        {"max_gen_toks": -1},
        {"max_gen_toks": [3]},
        {"until": [3]},
    ],
    ids=lambda given: " ".join(given),
)
def test_what_makes_no_sense_is_refused_by_its_name(given):
    with pytest.raises(UserError, match=f"{list(given)[-1]}=") as caught:
        read_options(given, 256)
    assert len(str(caught.value)) < 500


def test_what_is_not_supported_is_said_once(capsys, monkeypatch):
    monkeypatch.setattr(generation_options, "_said", set())
    for _ in range(2):
        read_options({"num_beams": 4, "repetition_penalty": 1.0}, 256)
    assert capsys.readouterr().err == (
        "generation option num_beams=4 is not supported and is left out\n"
    )
