import numpy as np
import pytest

from carve_jax.data import DataConfig, make_pipeline
from carve_jax.data.synthetic import Examples
from carve_jax.data.synthetic.mqar import MQAR
from carve_jax.errors import UserError
from tests.data.helpers import assert_same, take


def source(length=64, key=(1, 0), **settings):
    config = DataConfig(source="mqar", **{"vocab_size": 8192, **settings})
    return Examples(MQAR(config, length), key)


@pytest.mark.parametrize("queries", [0, 3])
def test_every_query_is_answered_by_the_value_of_its_key(queries):
    for example in (source(num_queries=queries)[i] for i in range(50)):
        tokens, mask = example["tokens"], example["loss_mask"] == 1
        keys, values = tokens[0:16:2], tokens[1:16:2]
        assert len(set(keys)) == len(set(values)) == 8
        assert np.all((keys >= 1) & (keys < 4096))
        assert np.all((values >= 4096) & (values < 8192))
        answers = dict(zip(keys.tolist(), values.tolist(), strict=True))
        asked = tokens[mask].tolist()
        assert len(set(asked)) == len(asked) == (queries or 8)
        assert [answers[key] for key in asked] == example["targets"][mask].tolist()
        assert np.all(np.nonzero(mask)[0] >= 16)
        assert np.all(np.nonzero(mask)[0] % 2 == 0)
        assert np.all(example["targets"][~mask] == 0)


def test_small_powers_ask_soon_and_one_asks_anywhere():
    def mean_place(power_a):
        examples = source(length=256, num_pairs=4, power_a=power_a)
        return np.mean([np.nonzero(examples[i]["loss_mask"])[0].mean() for i in range(50)])

    assert mean_place(1.0) == pytest.approx(8 + 124, abs=15)
    assert mean_place(0.01) < 75


def test_examples_hang_on_key_and_index_alone():
    ours = [source()[i] for i in (3, 0, 3)]
    assert_same([ours[0]], [ours[2]])
    assert_same([ours[1]], [source()[0]])
    assert not np.array_equal(ours[0]["tokens"], ours[1]["tokens"])
    assert not np.array_equal(source(key=(1, 1))[0]["tokens"], ours[1]["tokens"])


def pipeline(seed=0, **settings):
    config = {"source": "mqar", "vocab_size": 512, "num_pairs": 4, "eval_examples": 10, **settings}
    return make_pipeline(config, batch_size=4, sequence_length=64, segment_alignment=64, seed=seed)


def test_batches_and_the_fixed_held_out_set():
    ours = pipeline()
    assert ours.tokenizer is None
    assert ours.vocab_size == 512
    assert ours.describe()["num_pairs"] == 4
    (batch,) = take(ours.train_iterator(), 1)
    dtypes = {name: (array.dtype, array.shape) for name, array in batch.items()}
    integers = (np.dtype(np.int32), (4, 64))
    assert dtypes == {
        "tokens": integers,
        "targets": integers,
        "segment_ids": integers,
        "loss_mask": (np.dtype(np.float32), (4, 64)),
    }
    assert not batch["segment_ids"].any()
    held_out = list(ours.eval_batches())
    assert [int(b["loss_mask"].sum()) for b in held_out] == [16, 16, 8]
    assert_same(held_out, list(pipeline(seed=1).eval_batches()))
    shown = {row.tobytes() for b in take(ours.train_iterator(), 20) for row in b["tokens"]}
    assert len(shown) == 80
    assert not shown & {row.tobytes() for b in held_out for row in b["tokens"]}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_pairs": 17}, "at least 68"),
        ({"num_pairs": 0}, "at least one pair"),
        ({"num_queries": 5}, "as many as there are pairs"),
        ({"vocab_size": 64}, "more than 64"),
        ({"eval_examples": 0}, "at least one"),
    ],
)
def test_settings_that_do_not_fit_are_said(settings, said):
    with pytest.raises(UserError, match=said):
        pipeline(**settings)
