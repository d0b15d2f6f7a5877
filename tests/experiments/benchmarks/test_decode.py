"""The decode suite, a few tokens far: what it says of memory, and what it refuses."""

import json

import pytest

from experiments import benchmark, cli
from experiments.benchmarks.decode import measure
from experiments.benchmarks.patterns import Plan

TINY = {
    "vocab_size": 17, "d_model": 16, "mlp_dim": 16, "num_heads": 2, "key_dim": 8, "value_dim": 8,
    "window": 24, "gates": {"content_rank": 4}, "implementation": "recurrent",
}  # fmt: skip
LENGTHS = (32, 64, 128)


def measured(pattern: str) -> list[dict[str, float]]:
    plan = Plan(lengths=LENGTHS, most_of_attention=64, model=TINY)
    found = measure(pattern, plan)
    assert list(found["lengths"]) == [str(length) for length in LENGTHS]
    return list(found["lengths"].values())


@pytest.mark.slow  # always: what full attention takes, below
@pytest.mark.parametrize("pattern", ["gdn2", "carve+swa"])
def test_memory_is_constant_without_full_attention(pattern: str) -> None:
    at = measured(pattern)
    for figure in ("cache_bytes", "held_cache_bytes", "live_bytes"):
        assert at[0][figure] == at[1][figure] == at[2][figure] > 0
    assert at[0]["cache_bytes"] == at[0]["held_cache_bytes"] < at[0]["live_bytes"]
    assert all(0 < figures["milliseconds_a_token"] < 1000 for figures in at)
    assert at[0]["peak_rss_bytes"] <= at[2]["peak_rss_bytes"]


def test_full_attention_grows_and_is_followed_a_part_of_the_way() -> None:
    at = measured("attention")
    step = 2 * 4 * 2 * 8 * 32  # keys and values, float32, 2 heads of 8, 32 tokens
    assert at[1]["cache_bytes"] - at[0]["cache_bytes"] == step
    assert at[2]["cache_bytes"] - at[1]["cache_bytes"] == 2 * step
    assert at[0]["held_cache_bytes"] == at[1]["cache_bytes"]
    assert "live_bytes" in at[1]
    assert "live_bytes" not in at[2]


@pytest.mark.slow  # .ci/run runs the same command
def test_the_command_writes_what_it_prints(tmp_path, capsys) -> None:
    path = tmp_path / "decode.json"
    argv = ["benchmark", "--suite=decode", "--only=gdn2", "--tokens=40,100", f"--output={path}"]
    assert cli.call(benchmark.main, argv) == 0
    record = json.loads(path.read_text())
    assert list(record["patterns"]) == ["gdn2"]
    assert list(record["patterns"]["gdn2"]["lengths"]) == ["40", "100"]
    assert record["suite"] == "decode"
    assert "jax" in record["versions"]
    assert f"written to {path}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--tokens=many", "--tokens=many: give rising whole numbers above 16"),
        ("--tokens=100,100", "--tokens=100,100: give rising"),
        ("--tokens=16", "--tokens=16: give rising"),
        ("--only=gdm", "no part's name holds 'gdm'; there are carve, gdn2"),
    ],
)
def test_the_command_refuses(flag: str, words: str, capsys) -> None:
    assert cli.call(benchmark.main, ["benchmark", "--suite=decode", flag]) == 2
    assert words in capsys.readouterr().err
