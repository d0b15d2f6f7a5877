import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carve_jax.data import ByteTokenizer
from carve_jax.data.batches import (
    BatchIterator,
    Block,
    HeldOut,
    MixedOrder,
    rows_in_order,
)
from carve_jax.data.packing import Packer, Pieces
from carve_jax.data.token_files.shard import Shard
from carve_jax.errors import UserError
from tests.data.helpers import predicted_pieces, take

TOKENIZER = ByteTokenizer()
DOCUMENTS = st.lists(st.binary(min_size=0, max_size=70), min_size=1, max_size=12).filter(any)


def all_pieces(texts, length, alignment, shards=1):
    parts = [texts[i::shards] for i in range(shards)]
    encoded = [Shard.concatenate([TOKENIZER.encode(t) for t in p]) for p in parts]
    return Pieces(encoded, length, alignment, TOKENIZER.vocab_size)


def make_of(pieces):
    return Packer(TOKENIZER.separator, TOKENIZER.token_bytes, pieces.sequence_length).batch


def eval_batches(pieces, batch_size, window=8192):
    block = Block.of_process(batch_size, 0, 1)
    return HeldOut(lambda: rows_in_order(pieces, window), make_of(pieces), block)


def train_batches(pieces, batch_size, seed):
    block = Block.of_process(batch_size, 0, 1)
    return BatchIterator(MixedOrder({"": pieces}, (1.0,), seed), make_of(pieces), block)


def check_layout(batch, length, alignment, batch_size):
    """What every batch promises."""
    for name in ("tokens", "targets", "segment_ids", "target_bytes"):
        assert batch[name].dtype == np.int32
        assert batch[name].shape == (batch_size, length)
    assert batch["loss_mask"].dtype == np.float32
    ids, mask = batch["segment_ids"], batch["loss_mask"] == 1
    assert np.all(ids[:, 0] == 0)
    steps = np.diff(ids, axis=1)
    assert set(np.unique(steps)) <= {0, 1}
    starts = np.nonzero(steps)[1] + 1
    assert np.all(starts % alignment == 0)
    # Padding reads and predicts nothing; targets and their bytes are where the mask says.
    assert np.all(batch["tokens"][~mask] == TOKENIZER.separator)
    assert np.all(batch["targets"][~mask] == 0)
    np.testing.assert_array_equal(batch["target_bytes"], TOKENIZER.token_bytes[97] * mask)
    # Within a segment the targets come first and the padding after them.
    same = steps == 0
    assert not np.any(mask[:, 1:] & ~mask[:, :-1] & same)


@settings(deadline=None, max_examples=60)
@given(
    texts=DOCUMENTS,
    alignment=st.sampled_from([1, 4, 8]),
    units=st.integers(1, 4),
    batch_size=st.integers(1, 3),
    shards=st.integers(1, 3),
    window=st.sampled_from([1, 3, 8192]),
)
def test_held_out_text_is_predicted_exactly_once(
    texts, alignment, units, batch_size, shards, window
):
    length = alignment * units
    pieces = all_pieces(texts, length, alignment, shards)
    batches = list(eval_batches(pieces, batch_size, window))
    for batch in batches:
        check_layout(batch, length, alignment, batch_size)
    assert sum(int(b["target_bytes"].sum()) for b in batches) == sum(map(len, texts))

    found = predicted_pieces(batches)
    for inputs, targets in found:
        assert inputs[0] == TOKENIZER.separator
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
    expected = [t[i : i + length] for t in texts for i in range(0, len(t), length)]
    assert sorted(bytes(t.astype(np.uint8)) for _, t in found) == sorted(expected)


@settings(deadline=None, max_examples=8)
@given(
    texts=st.lists(st.binary(min_size=9, max_size=70), min_size=1),
    alignment=st.sampled_from([1, 8]),
    seed=st.integers(0, 9),
)
def test_training_batches_keep_the_layout(texts, alignment, seed):
    batches = take(train_batches(all_pieces(texts, 16, alignment), 2, seed), 5)
    whole = [t[i : i + 16] for t in texts for i in range(0, len(t), 16)]
    for batch in batches:
        check_layout(batch, 16, alignment, 2)
    for inputs, targets in predicted_pieces(batches):
        assert bytes(targets.astype(np.uint8)) in whole
        assert inputs[0] == TOKENIZER.separator


def test_a_small_row_by_hand():
    batch = take(eval_batches(all_pieces([b"abcdefghij", b"xy"], 8, 4), 2), 1)[0]
    sep = TOKENIZER.separator
    assert batch["tokens"].tolist() == [
        [sep, *b"abcdefg"],
        [sep, *b"i", sep, sep, sep, *b"x", sep, sep],
    ]
    assert batch["targets"].tolist() == [[*b"abcdefgh"], [*b"ij", 0, 0, *b"xy", 0, 0]]
    assert batch["segment_ids"].tolist() == [[0] * 8, [0] * 4 + [1] * 4]
    assert batch["loss_mask"].tolist() == [[1.0] * 8, [1.0, 1.0, 0.0, 0.0] * 2]


def test_each_epoch_has_every_piece_in_another_order():
    texts = [bytes([i]) * 8 for i in range(256)]  # one full row each
    batches = take(train_batches(all_pieces(texts, 8, 1), 64, 0), 8)
    order = [int(b["targets"][row, 0]) for b in batches for row in range(64)]
    first, second = order[:256], order[256:]
    assert sorted(first) == sorted(second) == list(range(256))
    assert len({tuple(range(256)), tuple(first), tuple(second)}) == 3


def test_a_token_outside_the_vocabulary_is_said():
    documents = Shard.concatenate([np.array([5, 300], np.int32)])
    with pytest.raises(UserError, match=r"token 300.*ends at 256"):
        next(train_batches(Pieces([documents], 8, 1, TOKENIZER.vocab_size), 1, 0))


@pytest.mark.parametrize(("length", "alignment"), [(100, 64), (32, 64), (0, 1), (0, 64)])
def test_rows_that_hold_no_whole_number_of_segments_are_refused(length, alignment):
    with pytest.raises(ValueError, match=f"sequence_length is {length}.*multiple of {alignment}"):
        all_pieces([b"abc"], length, alignment)
