"""Checkpoints: whole or not used, and said."""

import errno
import os
import resource
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from carve_jax.errors import UserError
from carve_jax.training.checkpoint import Checkpoints


def make_iterator():
    source = grain.MapDataset.source(np.arange(1000)).seed(3).shuffle().repeat()
    return iter(source.to_iter_dataset().batch(4))


def make_state(step, size=64):
    key = jax.random.key(step)
    return {"kernel": jax.random.normal(key, (size, size)), "step": jnp.int32(step)}


def write(directory, steps, size=64):
    """One checkpoint for each step, with as many batches drawn; then the next batch."""
    iterator = make_iterator()
    with Checkpoints(directory, keep=3) as checkpoints:
        for step in steps:
            next(iterator)
            checkpoints.save(step, make_state(step, size), iterator, {"tokens": 10 * step})
    return next(iterator)


def read(directory, lines, **options):
    iterator = make_iterator()
    with Checkpoints(directory, keep=3, say=lines.append, **options) as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(lambda: make_state(0)), iterator)
    return restored, iterator


def assert_is(restored, step):
    assert restored.step == step
    jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(step))
    assert restored.meta == {"tokens": 10 * step, "step": step}


def test_state_data_and_meta_come_back_to_the_bit(tmp_path):
    following = write(tmp_path, [1, 2])
    lines = []
    restored, iterator = read(tmp_path, lines)
    assert_is(restored, 2)
    np.testing.assert_array_equal(next(iterator), following)
    assert lines == []


def test_nothing_there_is_none(tmp_path):
    restored, _ = read(tmp_path, [])
    assert restored is None


def test_reading_only_needs_a_directory(tmp_path):
    with pytest.raises(UserError, match="no checkpoints in"):
        Checkpoints(tmp_path / "absent", read_only=True)


def test_the_state_may_change_while_it_is_being_saved(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    iterator = make_iterator()
    state = make_state(1, size=1024)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, iterator, {})
        for _ in range(50):
            state = step(state)
        checkpoints.wait()
        restored = checkpoints.restore(state)
    jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(1, size=1024))


def test_a_half_written_checkpoint_is_not_used_and_said(tmp_path):
    write(tmp_path, [1, 2])
    (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")
    lines = []
    restored, _ = read(tmp_path, lines, read_only=True)
    assert_is(restored, 1)
    assert lines == ["checkpoint of step 2 was not finished; it is not used"]
    assert (tmp_path / "2.orbax-checkpoint-tmp").exists()
    with Checkpoints(tmp_path, say=lines.append) as checkpoints:
        checkpoints.save(2, make_state(2), make_iterator(), {"tokens": 20})
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["1", "2"]


def largest_file(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_bit, cut, Path.unlink])
@pytest.mark.parametrize("part", ["state", "data", "meta"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, part, damage):
    write(tmp_path / "checkpoints", [1, 2])
    kind = {"state": "", "data": "process_0-of-1.json", "meta": "metadata"}[part]
    folder = tmp_path / "checkpoints" / "2" / part
    damage(folder / kind if kind else largest_file(folder))
    lines = []
    restored, iterator = read(tmp_path / "checkpoints", lines)
    assert_is(restored, 1)
    second = make_iterator()
    next(second)
    np.testing.assert_array_equal(next(iterator), next(second))
    assert len(lines) == 2
    assert lines[0].startswith("checkpoint of step 2 cannot be used: ")
    assert lines[1] == "the checkpoint of step 1 is used instead"
    assert (tmp_path / "checkpoints_damaged" / "2_0").is_dir()
    # The step may now be saved again.
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(2, make_state(2), iterator, {"tokens": 20})
    assert_is(read(tmp_path / "checkpoints", lines)[0], 2)


def test_a_changed_digit_of_the_data_position_is_noticed(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "2" / "data" / "process_0-of-1.json"
    changed = path.read_text().replace("8", "9")
    assert changed != path.read_text()
    path.write_text(changed)
    lines = []
    assert_is(read(tmp_path, lines)[0], 1)
    assert "its data position does not match its checksum" in lines[0]


def test_all_damaged_is_an_error_and_moves_nothing(tmp_path):
    write(tmp_path, [1, 2])
    for step in "12":
        flip_a_bit(largest_file(tmp_path / step / "state"))
    with pytest.raises(UserError, match="no usable checkpoint in"):
        read(tmp_path, [])
    assert {"1", "2"} <= {p.name for p in tmp_path.iterdir()}


def test_a_step_that_was_asked_for(tmp_path):
    write(tmp_path, [1, 2])
    like = jax.eval_shape(lambda: make_state(0))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert_is(checkpoints.restore(like, step=1), 1)
        with pytest.raises(UserError, match=r"no checkpoint of step 3 in .*: it has \[1, 2\]"):
            checkpoints.restore(like, step=3)


# Orbax leaves the other writes of a failed save to an event loop that has been closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_write_that_the_system_refuses(tmp_path):
    write(tmp_path, [1], size=256)
    iterator = make_iterator()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(2, make_state(2), iterator, {})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError) as caught, checkpoints:
            checkpoints.save(3, make_state(3, size=256), iterator, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert message.startswith("a checkpoint could not be written: a file may not grow that large")
    assert f"the last good checkpoint is step 2 in {tmp_path / '2'}" in message
    restored, _ = read(tmp_path, [])
    jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(2))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_space_left(tmp_path, monkeypatch):
    write(tmp_path, [1])
    iterator = make_iterator()

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    said = "could not be written: no space left on the device; the last good checkpoint is step 1"
    checkpoints = Checkpoints(tmp_path, keep=3)
    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_text", full)
    with pytest.raises(UserError, match=said), checkpoints:
        checkpoints.save(2, make_state(2), iterator, {})
    monkeypatch.undo()
    assert_is(read(tmp_path, [])[0], 1)
