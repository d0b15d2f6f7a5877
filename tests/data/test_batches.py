import json

import numpy as np
import pytest

from carve_jax.data import make_pipeline, train_bpe
from carve_jax.data import order as order_module
from carve_jax.errors import UserError
from tests.data.helpers import assert_same, predicted_pieces, take, write_shards

FEW, MANY = [b"a" * 5, b"b" * 70, b"c" * 130], [bytes([100 + i]) * (9 + 5 * i) for i in range(40)]
BATCHES = 25


@pytest.fixture
def paths(tmp_path):
    few = write_shards(tmp_path / "few", train_00000=FEW, eval_00000=[b"held out"])
    split = {"train_00000": MANY[:25], "train_00001": MANY[25:], "eval_00000": [b"held " * 30]}
    return str(few), str(write_shards(tmp_path / "many", **split))


@pytest.fixture(params=["mixture", "token_files", "mqar"])
def config(request, paths):
    return {
        "mixture": {"source": "mixture", "paths": paths, "weights": (0.3, 0.7)},
        "token_files": {"source": "token_files", "path": paths[1]},
        "mqar": {"source": "mqar", "vocab_size": 256, "num_pairs": 4, "eval_examples": 13},
    }[request.param]


def build(config, index=0, count=1, batch_size=8, seed=0):
    return make_pipeline(
        config,
        batch_size=batch_size,
        sequence_length=64,
        segment_alignment=16,
        seed=seed,
        process_index=index,
        process_count=count,
    )


def joined(parts):
    """The global batches that the blocks of all processes make up."""
    return [
        {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        for blocks in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("count", [2, 4])
def test_the_blocks_of_all_processes_are_the_batch_of_one(config, count):
    pipelines = [build(config, index, count) for index in range(count)]
    blocks = [take(p.train_iterator(), BATCHES) for p in pipelines]
    assert all(block[0]["tokens"].shape == (8 // count, 64) for block in blocks)
    assert_same(joined(blocks), take(build(config).train_iterator(), BATCHES))
    held_out = [list(p.eval_batches()) for p in pipelines]
    assert_same(joined(held_out), list(build(config).eval_batches()))


def test_a_position_that_one_process_saved_restores_any_number(config):
    straight = take(build(config).train_iterator(), BATCHES)
    for before, index in ((1, 0), (2, 1), (4, 3)):
        saved = build(config, index, before).train_iterator()
        take(saved, 11)
        state = json.loads(json.dumps(saved.get_state()))
        for after in (1, 2, 4):
            blocks = []
            for i in range(after):
                iterator = build(config, i, after).train_iterator()
                take(iterator, 3)  # elsewhere first
                iterator.set_state(state)
                assert iterator.get_state() == state
                blocks.append(take(iterator, BATCHES - 11))
            assert_same(joined(blocks), straight[11:])


def test_what_is_no_position_is_refused_and_changes_nothing(config):
    straight = take(build(config).train_iterator(), 4)
    iterator = build(config).train_iterator()
    take(iterator, 1)
    state = iterator.get_state()
    others = [{}, {"next": -1}, {"next": "1"}, {"sources": []}, {"sources": [{"pieces": 3}]}]
    if "sources" in state:
        others.append({"sources": [*state["sources"], state["sources"][0]]})
        others += [{"sources": [{**s, "row": -1} for s in state["sources"]]}, {**state, "next": 1}]
    for other in others:
        with pytest.raises(UserError, match="does not belong to these data"):
            iterator.set_state(other)
    assert iterator.get_state() == state
    assert_same(take(iterator, 3), straight[1:])


def test_a_position_in_other_data_is_refused_when_it_is_used(paths):
    iterator = build(mixed(paths, 1, 1)).train_iterator()
    take(iterator, 1)
    first, second = iterator.get_state()["sources"]
    for other in (first | {"pieces": 7}, first | {"row": 10**6}):
        iterator.set_state({"sources": [other, second]})
        assert iterator.get_state() == {"sources": [other, second]}
        with pytest.raises(UserError, match="does not belong to these data"):
            next(iterator)


def test_a_batch_that_does_not_divide_is_refused(config):
    with pytest.raises(UserError, match="batch_size is 8, which 3 processes cannot share"):
        build(config, 0, 3)
    with pytest.raises(UserError, match="no process 2 of 2"):
        build(config, 2, 2)


def mixed(paths, *weights):
    return {"source": "mixture", "paths": paths, "weights": weights}


def rows_of_few(batches):
    """Whether each row is of the first source."""
    targets = np.concatenate([b["targets"] for b in batches])
    mask = np.concatenate([b["loss_mask"] for b in batches]) == 1
    ours = np.isin(targets, list(b"abc"))
    assert np.all(np.where(mask, ours, False).any(1) != np.where(mask, ~ours, False).any(1))
    return np.where(mask, ours, False).any(1)


@pytest.mark.parametrize("weights", [(0.3, 0.7), (3, 7), (1.0, 0.05), (0.5, 0.5)])
def test_every_beginning_has_rows_by_weight(paths, weights):
    iterator = build(mixed(paths, *weights)).train_iterator()
    few = np.cumsum(rows_of_few(take(iterator, 40)))
    wanted = weights[0] / sum(weights) * np.arange(1, len(few) + 1)
    assert np.abs(few - wanted).max() <= 1.0


def test_each_source_keeps_its_own_order_and_epochs(paths):
    """A source's rows are those that it would have alone with the same key, whatever the weight."""

    def many(*weights):
        batches = take(build(mixed(paths, *weights)).train_iterator(), 40)
        here = ~rows_of_few(batches)
        return np.concatenate([b["targets"] for b in batches])[here]

    some, more = many(1, 1), many(1, 3)
    assert len(some) < len(more)
    np.testing.assert_array_equal(some, more[: len(some)])

    iterator = build(mixed(paths, 1, 1)).train_iterator()
    assert set(iterator.epochs().values()) == {0.0}
    counts = {}
    while min(iterator.epochs().values()) < 2.0:
        for _, targets in predicted_pieces([next(iterator)]):
            counts[bytes(targets.astype(np.uint8))] = (
                counts.get(bytes(targets.astype(np.uint8)), 0) + 1
            )
    epochs = iterator.epochs()
    assert list(epochs) == list(paths)
    assert epochs[paths[0]] > 3 * epochs[paths[1]]
    # Windows of whole epochs: a piece has been seen as often as epochs say, but for one window.
    for path, piece in ((paths[0], b"a" * 5), (paths[1], MANY[3])):
        assert abs(counts[piece] - epochs[path]) <= 5


def test_windows_smaller_than_an_epoch(paths, monkeypatch):
    monkeypatch.setattr(order_module, "WINDOW", 7)
    config = {"source": "token_files", "path": paths[1]}
    straight = take(build(config).train_iterator(), BATCHES)
    texts = {text[i : i + 64] for text in MANY for i in range(0, len(text), 64)}
    seen = {bytes(t.astype(np.uint8)) for _, t in predicted_pieces(straight)}
    assert seen == texts
    iterator = build(config).train_iterator()
    take(iterator, 13)
    other = build(config).train_iterator()
    other.set_state(iterator.get_state())
    assert_same(take(other, BATCHES - 13), straight[13:])


def test_a_mixture_holds_out_all_that_its_sources_hold_out(paths):
    pipeline = build(mixed(paths, 1, 1))
    found = sorted(bytes(t.astype(np.uint8)) for _, t in predicted_pieces(pipeline.eval_batches()))
    whole = [b"held out", b"held " * 30]
    assert found == sorted(t[i : i + 64] for t in whole for i in range(0, len(t), 64))
    facts = pipeline.describe()["mixture"]
    assert facts[paths[0]]["weight"] == 1
    assert facts[paths[1]]["train_documents"] == len(MANY)
    json.dumps(facts)


@pytest.mark.parametrize(
    ("names", "weights", "said"),
    [
        ((), (), "one weight for each directory"),
        (("few", "many"), (1.0,), "names 2 directories and data.weights has 1 numbers"),
        (("few", "many"), (1.0, 0.0), "weight 0.0; give a finite number above 0"),
        (("few", "many"), (1.0, -2), "weight -2"),
        (("few", "many"), (1.0, float("nan")), "weight nan"),
        (("few", "many"), (1.0, float("inf")), "weight inf"),
        (("few", "many"), (1.0, "much"), "'much'; give a number"),
        (("few", "few"), (1.0, 2.0), "more than once"),
        (("few", "none"), (1.0, 2.0), "no directory"),
        (("few", "empty"), (1.0, 2.0), "no training text in .*empty"),
        (("few", "bpe"), (1.0, 2.0), "different tokenizers, of 260 and 257 ids"),
    ],
)
def test_bad_mixtures_are_said(paths, tmp_path, names, weights, said):
    write_shards(tmp_path / "empty", train_00000=[], eval_00000=[b"text"])
    bpe = train_bpe([b"some text " * 9], 260)
    write_shards(tmp_path / "bpe", bpe, train_00000=[b"some text"], eval_00000=[b"text"])
    config = mixed(tuple(str(tmp_path / name) for name in names), *weights)
    with pytest.raises(UserError, match=said):
        build(config)
