import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carve_jax.data import order
from carve_jax.data.order import Windows, pack, permute


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097])
def test_every_number_has_one_image(length):
    found = permute(np.arange(length), length, (0, length))
    assert found.dtype == np.int64
    assert sorted(found.tolist()) == list(range(length))


def test_a_part_of_a_permutation_is_that_part_of_it():
    whole = permute(np.arange(1000), 1000, (3, 1))
    np.testing.assert_array_equal(permute(np.arange(400, 410), 1000, (3, 1)), whole[400:410])
    assert not np.array_equal(permute(np.arange(1000), 1000, (3, 2)), whole)
    assert len(np.unique(permute(np.arange(50), 10**12, (0,)))) == 50


def test_images_are_spread_evenly():
    # Each of 3000 positions goes to each tenth of the range about as often as to any other.
    tenths = [permute(np.arange(3000), 3000, (0, epoch)) // 300 for epoch in range(200)]
    counts = np.stack([(np.stack(tenths) == t).sum(0) for t in range(10)])
    chi_squared = ((counts - 20.0) ** 2 / 20.0).sum(0)
    assert abs(chi_squared.mean() - 9.0) < 0.5  # nine degrees of freedom
    fixed = [np.sum(permute(np.arange(3000), 3000, (1, e)) == np.arange(3000)) for e in range(200)]
    assert 0.7 < np.mean(fixed) < 1.3  # one on average


@settings(deadline=None, max_examples=100)
@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=60))
def test_rows_hold_all_pieces_and_overflow_nowhere(lengths):
    lengths = np.array(lengths)
    rows, count = pack(lengths, 16)
    used = np.bincount(rows, weights=lengths, minlength=count)
    assert len(used) == count
    assert np.all((used > 0) & (used <= 16))
    # No two rows would fit into one.
    assert np.all(np.sort(used)[:2].sum() > 16) or count == 1


def test_the_fullest_row_with_room_is_taken():
    rows, count = pack(np.array([3, 10, 7, 6, 3]), 13)
    assert count == 3
    assert rows[0] == rows[1]  # 10 + 3 before 7 + 3
    assert rows[2] == rows[3]


@pytest.mark.parametrize(("pieces", "rows"), [(5, 2.0), (40, 200.0), (100, 30.0), (1001, 300.0)])
def test_windows_make_up_epochs(monkeypatch, pieces, rows):
    monkeypatch.setattr(order, "WINDOW", 100)
    windows = Windows.cut(pieces, rows)
    per_epoch = windows.parts
    taken = [windows.members(w, (0, 0)) for w in range(3 * per_epoch)]
    assert windows.epoch(3 * per_epoch, 0.0) == 3 * windows.epochs
    for start in range(0, 3 * per_epoch, per_epoch):
        epochs = np.concatenate(taken[start : start + per_epoch])
        assert np.bincount(epochs).tolist() == [windows.epochs] * pieces
    assert not np.array_equal(taken[0], taken[per_epoch])
    assert rows * windows.epochs > 8 or per_epoch > 1
