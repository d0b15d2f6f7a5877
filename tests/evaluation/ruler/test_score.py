"""RULER's scores, by hand."""

import pytest

from carve_jax.evaluation.ruler.score import score


@pytest.mark.parametrize(
    ("reply", "answers", "all_of", "any_of"),
    [
        (" 1234567.", ["1234567"], 1.0, 1.0),
        (" 123456 7", ["1234567"], 0.0, 0.0),
        ("the words are Amber-Anvil, red-OAK", ["amber-anvil", "red-oak"], 1.0, 1.0),
        ("12 and 56", ["12", "34", "56", "78"], 0.5, 1.0),
        ("", ["12", "34"], 0.0, 0.0),
        ("1234", ["12", "34", "123"], 1.0, 1.0),  # substrings, as RULER counts them
        ("12\x0034", ["1234"], 0.0, 0.0),
    ],
)
def test_scores(reply, answers, all_of, any_of):
    assert score(reply, answers) == score(reply, answers, match="all") == all_of
    assert score(reply, answers, match="part") == any_of
