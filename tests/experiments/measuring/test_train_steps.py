"""Models of 1.3B parameters by name, and what a step of them comes to."""

import pytest

from experiments.measuring.train_steps import (
    LAYER_SIZES,
    MODELS,
    Cost,
    cost_of,
    model_config,
    model_fields,
    step_figures,
)

# Of the configs' docstrings.
PARAMETERS = {
    "gdn2": 1_450_096_416, "carve": 1_367_004_960, "gdn2_swa": 1_447_772_688,
    "transformer": 1_453_411_584, "kda": 1_448_105_760, "gdn": 1_449_875_520,
    "mamba2": 1_453_868_928,
}  # fmt: skip
LENGTH = 4096


def test_the_models_are_those_of_the_configs() -> None:
    assert set(MODELS) == set(PARAMETERS)
    assert model_fields("gdn2") == {**LAYER_SIZES, "pattern": ("gdn2",)}
    assert model_fields("carve") == {**LAYER_SIZES, "pattern": ("carve",)}
    hybrid = model_fields("gdn2_swa")
    assert (hybrid["pattern"], hybrid["attention_heads"]) == (("gdn2", "swa"), 18)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_counted_as_the_configs_say(name: str) -> None:
    assert cost_of(model_config(model_fields(name)), LENGTH).parameters == PARAMETERS[name]


def test_the_flops_of_gdn2_by_hand() -> None:
    d, inner, mlp, heads, channels = 2304, 2048, 6208, 16, 128
    bottlenecks = 2 * (d * channels + channels * inner)  # of the decay and of the output gate
    mixer = 6 * d * inner + bottlenecks  # q, k, v, b, w, o
    matrices = 18 * (mixer + 3 * d * mlp) + d * 32000
    rule = 18 * 7 * heads * channels * channels
    cost = cost_of(model_config(model_fields("gdn2")), LENGTH)
    assert cost.flops == 3 * (2 * matrices + rule)


def test_attention_counts_the_pairs_of_a_causal_row_and_of_a_window() -> None:
    def of(name: str, length: int) -> float:
        return cost_of(model_config(model_fields(name)), length).flops

    longer = of("transformer", 2 * LENGTH) - of("transformer", LENGTH)
    assert longer == 3 * 18 * 4 * 2304 * LENGTH / 2
    windowed = of("gdn2_swa", 2 * LENGTH) - of("gdn2_swa", LENGTH)
    assert 0 < windowed < longer / 4


def test_a_peer_s_own_matrices_take_the_place_of_ours() -> None:
    config = model_config(model_fields("kda"))
    ours = cost_of(config, LENGTH)
    theirs = cost_of(config, LENGTH, (123, 0))
    assert theirs.parameters == 123
    rule = 3 * 18 * 7 * 16 * 128 * 128
    assert theirs.flops == rule
    assert cost_of(config, LENGTH, (123, (round(ours.flops) - rule) // 6)).flops == ours.flops


def test_figures_of_a_step() -> None:
    cost = Cost(parameters=7, flops=989e6)
    figures = step_figures(0.5, 4, 1000, cost, "NVIDIA H200")
    assert figures["tokens_per_second"] == 8000
    assert figures["mfu"] == pytest.approx(8000 * 989e6 / 989e12)
    assert (figures["rows"], figures["parameters"]) == (4, 7)
    assert step_figures(0.5, 4, 1000, cost, "cpu")["mfu"] is None


def test_fields_may_come_from_json() -> None:
    fields = {**model_fields("gdn2_swa"), "pattern": ["gdn2", "swa"]}
    assert model_config(fields) == model_config(model_fields("gdn2_swa"))
