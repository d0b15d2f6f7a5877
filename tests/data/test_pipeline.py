import json

import ml_collections
import numpy as np
import pytest

from carve_jax.data import ByteTokenizer, DataConfig, make_pipeline, make_tokenizer
from carve_jax.data.sources.stdlib import stdlib_documents
from carve_jax.errors import UserError
from tests.data.helpers import assert_same, take, write_shards

TEXTS = [bytes([97 + i % 26]) * (5 + 7 * i) for i in range(30)]


@pytest.fixture
def configs(tmp_path):
    shards = write_shards(tmp_path / "data", train_00000=TEXTS, eval_00000=[b"held out " * 9])
    return {
        "stdlib": {"parts": ("topics",)},
        "token_files": {"source": "token_files", "path": str(shards)},
        "mqar": {"source": "mqar", "vocab_size": 256, "num_pairs": 4},
    }


def build(config, seed=0, batch_size=4, sequence_length=128, segment_alignment=64):
    return make_pipeline(
        config,
        batch_size=batch_size,
        sequence_length=sequence_length,
        segment_alignment=segment_alignment,
        seed=seed,
    )


@pytest.mark.parametrize("source", ["stdlib", "token_files", "mqar"])
def test_a_restored_iterator_continues_to_the_bit(configs, source):
    straight = take(build(configs[source]).train_iterator(), 90)
    for stop in (0, 1, 37, 64):
        first = build(configs[source]).train_iterator()
        assert_same(take(first, stop), straight[:stop])
        state = json.loads(json.dumps(first.get_state()))
        second = build(configs[source]).train_iterator()
        second.set_state(state)
        assert_same(take(second, 90 - stop), straight[stop:])


@pytest.mark.parametrize("source", ["stdlib", "token_files", "mqar"])
def test_the_seed_moves_the_training_batches_and_nothing_else(configs, source):
    ours, other = build(configs[source]), build(configs[source], seed=1)
    (one,), (two,) = take(ours.train_iterator(), 1), take(other.train_iterator(), 1)
    assert not np.array_equal(one["tokens"], two["tokens"])
    assert_same(list(ours.eval_batches()), list(other.eval_batches()))
    assert_same(list(ours.eval_batches()), list(ours.eval_batches()))
    assert ours.describe() == other.describe()
    json.dumps(ours.describe())


def test_the_default_source_from_a_config_dict():
    config = ml_collections.ConfigDict({"source": "stdlib", "parts": ("topics", "docstrings")})
    pipeline = build(config, batch_size=8, sequence_length=256)
    facts = pipeline.describe()
    total = sum(len(d.text) for d in stdlib_documents(("topics", "docstrings")))
    assert facts["train_bytes"] + facts["eval_bytes"] == total > 1_500_000
    assert 0.02 < facts["eval_bytes"] / total < 0.15
    held_out = list(pipeline.eval_batches())
    assert sum(int(b["target_bytes"].sum()) for b in held_out) == facts["eval_bytes"]
    assert pipeline.vocab_size == pipeline.tokenizer.vocab_size == 257
    filled = np.mean([b["loss_mask"].mean() for b in take(pipeline.train_iterator(), 100)])
    assert filled > 0.95


def test_bpe_counts_the_bytes_of_the_held_out_text():
    config = {"parts": ("topics",), "tokenizer": "bpe", "vocab_size": 400}
    pipeline = build(config)
    facts = pipeline.describe()
    assert pipeline.vocab_size == 400
    assert facts["eval_tokens"] < 0.7 * facts["eval_bytes"]
    held_out = list(pipeline.eval_batches())
    assert sum(int(b["loss_mask"].sum()) for b in held_out) == facts["eval_tokens"]
    assert sum(int(b["target_bytes"].sum()) for b in held_out) == facts["eval_bytes"]
    assert make_tokenizer(config).to_json() == pipeline.tokenizer.to_json()


def test_tokenizers_by_source(configs, tmp_path):
    assert isinstance(make_tokenizer({}), ByteTokenizer)
    assert isinstance(make_tokenizer(configs["token_files"]), ByteTokenizer)
    assert make_tokenizer(configs["mqar"]) is None
    bpe = make_tokenizer({"parts": ("topics",), "tokenizer": "bpe", "vocab_size": 300})
    path = tmp_path / "tokenizer.json"
    path.write_text(bpe.to_json(), encoding="utf-8")
    loaded = make_tokenizer({"tokenizer": str(path)})
    assert loaded.encode("the rule").tolist() == bpe.encode("the rule").tolist()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"source": "stdlb"}, "'stdlib', 'token_files', 'mixture', .*; did you mean 'stdlib'"),
        ({"sauce": "stdlib"}, "key 'sauce'.*did you mean 'source'"),
        ({"parts": ("topic",)}, "did you mean 'topics'"),
        ({"parts": ()}, "at least one"),
        ({"parts": ("docstrings", "sources")}, "one of the two"),
        ({"eval_fraction": 0.0}, "between 0 and 1"),
        ({"eval_fraction": 1e-9, "parts": ("topics",)}, "no held-out text"),
        ({"tokenizer": "byts"}, "'byts' cannot be read.*'bytes', 'bpe' or"),
        ({"source": "token_files"}, "no directory"),
    ],
)
def test_bad_settings_are_said(config, said):
    with pytest.raises(UserError, match=said):
        build(config)


def test_one_part_may_be_a_plain_string():
    assert DataConfig.from_config({"parts": "topics"}).parts == ("topics",)


def test_rows_that_do_not_fit_are_refused(configs):
    with pytest.raises(ValueError, match=r"sequence_length is 100.*multiple of 64"):
        build(configs["mqar"], sequence_length=100)
    with pytest.raises(ValueError, match="batch_size is 0"):
        build(configs["mqar"], batch_size=0)
    with pytest.raises(ValueError, match="seed is -1"):
        build(configs["mqar"], seed=-1)


@pytest.mark.parametrize("given", ["train", "eval"])
def test_an_empty_split_is_said(tmp_path, given):
    texts = {"train_00000": [b"text"] * (given == "train"), "eval_00000": [b""]}
    if given == "eval":
        texts = {"train_00000": [], "eval_00000": [b"text"]}
    config = {"source": "token_files", "path": str(write_shards(tmp_path / "data", **texts))}
    missing = "held-out" if given == "train" else "training"
    with pytest.raises(UserError, match=f"no {missing} text"):
        build(config)
