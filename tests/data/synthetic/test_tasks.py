"""What each task means, against plain Python; and what all of them share."""

import itertools
import json

import numpy as np
import pytest

from carve_jax.data import DataConfig, make_pipeline
from carve_jax.data.config import SYNTHETIC
from carve_jax.data.synthetic import TASKS, Examples
from carve_jax.errors import UserError
from tests.data.helpers import assert_same, take

SMALL = {
    "mqar": {"vocab_size": 128, "num_pairs": 4},
    "overwriting_recall": {"vocab_size": 32, "num_pairs": 5},
    "selective_copying": {"vocab_size": 16, "num_queries": 6},
    "state_tracking": {"group": "s3"},
    "content_erase": {"vocab_size": 13, "num_pairs": 5},
    "ruler": {"probe": "niah_single_1"},
}
LENGTHS = dict.fromkeys(SMALL, 64) | {"ruler": 384}


def examples(source, count=40, length=None, key=(1, 0), **settings):
    """Rows as lists: (tokens, targets by place)."""
    config = DataConfig(source=source, **{**SMALL[source], **settings})
    rows = Examples(TASKS[source](config, length or LENGTHS[source]), key)
    for row in (rows[i] for i in range(count)):
        asked = np.nonzero(row["loss_mask"])[0].tolist()
        assert set(row["loss_mask"].tolist()) <= {0.0, 1.0}
        assert not row["segment_ids"].any()
        assert not row["targets"][row["loss_mask"] == 0].any()
        yield row["tokens"].tolist(), {place: int(row["targets"][place]) for place in asked}


def writes_and_queries(tokens, answers, filler=1):
    """(writes as pairs, asked keys) of a row that ends in queries; the front is filler."""
    end = len(tokens) - len(answers)
    assert list(answers) == list(range(end, len(tokens)))
    start = next(i for i, token in enumerate(tokens) if i >= filler and token != 0)
    assert tokens[filler:start] == [0] * (start - filler)
    return list(zip(tokens[start:end:2], tokens[start + 1 : end : 2], strict=True)), tokens[end:]


def test_ruler_in_mixed_lengths_has_as_many_of_each_doubling():
    ends = [1 + max(answers) for _, answers in examples("ruler", 400, 1536, shortest=384)]
    assert min(ends) >= 384 - 16
    assert max(ends) <= 1536
    assert 160 < sum(end <= 768 for end in ends) < 240
    tokens, answers = next(examples("ruler", 1, 1536, shortest=384))
    assert not any(tokens[1 + max(answers) :])
    whole = list(examples("ruler", 5, 1536))
    assert list(examples("ruler", 5, 1536, shortest=1536)) == whole


@pytest.mark.parametrize(
    ("shortest", "said"),
    [(385, "up to the row's 384 tokens"), (-1, "data.shortest is -1"), (30, "does not fit in 31")],
)
def test_a_shortest_length_that_cannot_be_is_refused(shortest, said):
    with pytest.raises(UserError, match=said):
        TASKS["ruler"](DataConfig(source="ruler", shortest=shortest), 384)


@pytest.mark.parametrize(("writes", "queries"), [(3, 0), (5, 2)])
def test_overwriting_recall_is_a_dictionary(writes, queries):
    changed = 0
    rows = examples("overwriting_recall", num_writes=writes, num_queries=queries)
    for tokens, answers in rows:
        pairs, asked = writes_and_queries(tokens, answers, filler=0)
        memory = dict(pairs)
        assert [memory[key] for key in asked] == list(answers.values())
        assert len(set(asked)) == len(asked) == (queries or 5)
        assert all(1 <= key < 16 <= value < 32 for key, value in pairs)
        counts = [sum(key == other for other, _ in pairs) for key in memory]
        assert counts == [writes] * 5
        changed += sum(dict(reversed(pairs))[key] != memory[key] for key in asked)
    assert changed > 0.8 * 40 * len(asked)  # first values are no answers


def test_overwriting_recall_writes_in_every_order():
    orders = {
        tuple(key for key, _ in writes_and_queries(*row, filler=0)[0])
        for row in examples("overwriting_recall", num_pairs=2, num_writes=2, vocab_size=6)
    }
    assert orders == {(1, *rest) for rest in set(itertools.permutations((1, 2, 2)))} | {
        (2, *rest) for rest in set(itertools.permutations((2, 1, 1)))
    }


def test_selective_copying_says_the_data_in_order():
    starts = set()
    for tokens, answers in examples("selective_copying"):
        assert tokens[-6:] == [1] * 6
        data = [token for token in tokens[:-6] if token != 0]
        assert data == list(answers.values())
        assert list(answers) == list(range(58, 64))
        assert all(2 <= token < 16 for token in data)
        starts.add(next(i for i, token in enumerate(tokens) if token))
    assert len(starts) > 8


@pytest.mark.parametrize(("group", "things"), [("parity", 2), ("s3", 3), ("s5", 5)])
def test_state_tracking_moves_things_about(group, things):
    permutations = list(itertools.permutations(range(things)))
    seen = set()
    for tokens, answers in examples("state_tracking", group=group, length=48):
        places = list(range(things))  # of each thing
        for place, token in enumerate(tokens):
            places = [permutations[token][now] for now in places]
            assert permutations[answers[place]] == tuple(places)
        seen.update(tokens)
    assert seen == set(range(len(permutations)))


def test_content_erase_replaces_or_accumulates():
    against = {1: [], 2: []}
    for tokens, answers in examples("content_erase", count=200, num_writes=5):
        pairs, asked = writes_and_queries(tokens, answers)
        assert tokens[1:5] == [0] * 4
        last, total = {}, {}
        for key, token in pairs:
            assert 5 <= key < 13
            last[key] = {3: -1, 4: 1}[token]
            total[key] = total.get(key, 0) + last[key]
        for key, answer in zip(asked, answers.values(), strict=True):
            said = {3: -1, 4: 1}[answer]
            assert said * (last[key] if tokens[0] == 1 else total[key]) > 0
            against[tokens[0]].append(last[key] * total[key] < 0)
        assert len(pairs) == 25
    # Half of the keys end against their majority, in both modes.
    assert [np.mean(share) for share in against.values()] == pytest.approx([0.5, 0.5], abs=0.08)
    assert 0.4 < len(against[1]) / 1000 < 0.6


def test_ruler_asks_for_a_reply_that_ends(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Über allen Gipfeln ist Ruh. In allen Wipfeln spürest du kaum einen Hauch.")
    for settings in ({}, {"probe": "niah_multiquery", "path": str(text)}):
        for tokens, answers in examples("ruler", count=10, length=700, **settings):
            start, end = min(answers), max(answers)
            assert list(answers) == list(range(start, end + 1))
            assert end >= 698  # half of a letter may not fit
            assert tokens[0] == answers[end] == 256
            assert list(answers.values())[:-1] == tokens[start + 1 : end + 1]
            prompt, reply = (
                bytes(part).decode()
                for part in (tokens[1 : start + 1], tokens[start + 1 : end + 1])
            )
            assert prompt.endswith((" text is", " text are"))
            numbers = reply.strip().split(", ")
            assert all(prompt.count(f" is: {number}.") == 1 for number in numbers)
            assert len(numbers) == (4 if settings else 1)


def test_examples_hang_on_key_and_index_alone():
    for source in SYNTHETIC:
        rows = list(examples(source, count=3))
        assert rows == list(examples(source, count=3))
        assert rows != list(examples(source, count=3, key=(1, 1)))
        assert rows[0] != rows[1]


def pipeline(source, seed=0, **settings):
    config = {"source": source, "eval_examples": 6, **SMALL[source], **settings}
    sizes = {"batch_size": 4, "sequence_length": LENGTHS[source], "segment_alignment": 16}
    return make_pipeline(config, **sizes, seed=seed)


@pytest.mark.parametrize("source", SYNTHETIC)
def test_batches_resume_and_hold_out(source):
    ours = pipeline(source)
    assert (ours.tokenizer is None) == (source != "ruler")
    straight = take(ours.train_iterator(), 6)
    stopped = pipeline(source).train_iterator()
    assert_same(take(stopped, 2), straight[:2])
    resumed = pipeline(source).train_iterator()
    resumed.set_state(json.loads(json.dumps(stopped.get_state())))
    assert_same(take(resumed, 4), straight[2:])

    dtypes = {name: str(array.dtype) for name, array in straight[0].items()}
    assert dtypes == {
        "tokens": "int32", "targets": "int32", "segment_ids": "int32", "loss_mask": "float32",
    }  # fmt: skip
    assert max(b[name].max() for b in straight for name in ("tokens", "targets")) < ours.vocab_size
    held_out, other = list(ours.eval_batches()), pipeline(source, seed=1)
    assert_same(held_out, list(other.eval_batches()))
    assert not held_out[1]["loss_mask"][2:].any()
    shown = {
        row.tobytes() for b in straight + take(other.train_iterator(), 6) for row in b["tokens"]
    }
    assert len(shown) == 48
    assert not shown & {row.tobytes() for b in held_out for row in b["tokens"]}
    facts = ours.describe()
    assert facts["source"] == source
    assert facts.items() >= SMALL[source].items()


def test_every_synthetic_source_has_its_task():
    assert set(TASKS) == set(SYNTHETIC)


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        ("overwriting_recall", {"num_pairs": 12}, "12 keys written 3 times.*at least 84"),
        ("overwriting_recall", {"num_writes": 0}, "at least once"),
        ("overwriting_recall", {"num_queries": 6}, "as many as there are pairs"),
        ("overwriting_recall", {"vocab_size": 11}, "at least 12"),
        ("overwriting_recall", {"eval_examples": 0}, "at least one"),
        ("selective_copying", {"num_queries": 0}, "tokens to copy, at least one"),
        ("selective_copying", {"num_queries": 33}, "at least 66, but it is 64"),
        ("selective_copying", {"vocab_size": 3}, "need 4 or more"),
        ("state_tracking", {"group": "s4"}, "'parity', 's3', 's5'"),
        ("content_erase", {"num_writes": 4}, "odd number from 3 to 15"),
        ("content_erase", {"num_writes": 1}, "odd number from 3 to 15"),
        ("content_erase", {"vocab_size": 9}, "at least 10"),
        ("content_erase", {"num_pairs": 9, "vocab_size": 14}, "of at least 68, but it is 64"),
        ("ruler", {"probe": "niah"}, "data.probe has the value 'niah'"),
        ("ruler", {"probe": "niah_single_2"}, "hides its needles in a text"),
        ("ruler", {"path": "nowhere.txt"}, "cannot be read"),
        ("ruler", {"probe": "niah_multikey_3"}, "does not fit in 385 tokens"),
    ],
)
def test_settings_that_do_not_fit_are_said(source, settings, said):
    with pytest.raises(UserError, match=said):
        pipeline(source, **settings)
