import json

import pytest

from carve_jax.errors import UserError
from experiments.benchmarks import data
from experiments.benchmarks.data import Plan, data_suite, demand, make_plan


def test_what_is_eaten_follows_from_the_model():
    found = demand()
    # Six operations per parameter and token, and the mixers' own beside them; embeddings add none.
    assert 6 * 1.3e9 < found["train_flops_per_token"] < 9 * 1.367e9
    at_40, at_100 = found["tokens_per_second"].values()
    assert at_100 * found["train_flops_per_token"] == pytest.approx(8 * 989e12)
    assert at_40 == pytest.approx(0.4 * at_100)


@pytest.mark.slow  # always: its parts
def test_a_small_suite(capsys):
    saved = []
    plan = Plan(
        shards=2, shard_tokens=30_000, batches=1, text_bytes=200_000, vocab_size=300, workers=(1,)
    )
    figures = data_suite(2, lambda f: saved.append(json.dumps(f)), plan)
    assert len(saved) == 1
    read = figures["read"]
    assert read["tokens_a_batch"] == pytest.approx(
        read["one process"]["tokens_per_second"] * read["one process"]["seconds_a_batch"]
    )
    assert 0.5 < read["filled"] <= 1.0
    times = (
        read["one process"]["tokens_per_second"]
        / demand()["tokens_per_second"]["at 40% of the peak"]
    )
    assert read["times_demand"]["at 40% of the peak"] == pytest.approx(times, abs=0.06)
    assert 200_000 <= figures["prepare"]["source_bytes"] < 500_000
    assert figures["prepare"]["tokens"] > 30_000
    out = capsys.readouterr().out
    assert "read / eaten at 100% of the peak" in out
    assert "prepared by 1 workers" in out


def test_parts_by_name():
    assert make_plan(("read",)).parts == ("read",)
    assert make_plan(()).parts == data.PARTS
    assert make_plan(()).workers[0] == 1
    with pytest.raises(UserError, match="no part's name holds 'write'; there are read, prepare"):
        make_plan(("write",))
