"""The least work of a rule, counted by hand."""

import pytest

from experiments.measuring.floors import floors
from experiments.measuring.rule_calls import DIRECTIONS, Shape

RATES = {"flop_per_second": 1e9, "bytes_per_second": 1e9}


@pytest.mark.parametrize("rule", ["gdn2", "carve"])
def test_floors(rule: str) -> None:
    forward, both = (
        floors(Shape(2, 64, 3, 128), rule, d, "bfloat16", RATES, tile=16) for d in DIRECTIONS
    )
    tokens, d = 2 * 64 * 3, 128
    write = 2 * d if rule == "gdn2" else 2
    inputs = 4 * 2 * d + write + 4 * d  # q, k, v, erase; w; g
    assert forward["bytes"] == tokens * (inputs + 2 * d)
    assert both["bytes"] == tokens * (3 * inputs + 2 * 2 * d)
    assert forward["flop"] == tokens * (4 * 16 * d + 6 * d * d)
    assert both["flop"] == tokens * (15 * 16 * d + 20 * d * d)
    assert both["bytes_seconds"] == pytest.approx(both["bytes"] / 1e9)


def test_the_floor_grows_with_the_tokens() -> None:
    one, eight = (
        floors(shape, "gdn2", DIRECTIONS[1], "float32", RATES, tile=64)
        for shape in (Shape(1, 64, 1, 64), Shape(2, 128, 2, 64))
    )
    assert eight["flop"] == 8 * one["flop"] == 8 * 64 * (15 * 64 * 64 + 20 * 64 * 64)
    assert eight["bytes_seconds"] == pytest.approx(8 * one["bytes_seconds"])
    assert one["bytes"] == 64 * 64 * 4 * (2 * 6 + 2 + 6)
