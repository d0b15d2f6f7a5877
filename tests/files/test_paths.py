"""Paths as people give them: told in a sentence, never waited for, never long."""

import os
from pathlib import Path

import pytest

from carve_jax.errors import UserError
from carve_jax.files import local_path, open_regular, reason_of, replacing, shown, told


@pytest.mark.parametrize("given", ["gs://bucket/run", "s3:/bucket", "hdfs://x", "", "a\0b"])
def test_what_is_no_path_here_is_told(given):
    with pytest.raises(UserError, match=r"^--output="):
        local_path(given, "--output")


def test_a_home_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/run", "--workdir") == tmp_path / "run"
    assert local_path("a/~b:c", "--workdir") == Path("a/~b:c")
    with pytest.raises(UserError, match="no such home"):
        local_path("~nobody-of-this-name/run", "--workdir")


def test_reasons_and_values_are_short_and_of_one_line():
    with pytest.raises(UnicodeEncodeError) as caught:
        ("y" * 1_000_000 + "\ud83d").encode()
    assert len(reason_of(caught.value)) < 100
    assert reason_of(ValueError("a\n b" * 1000)).startswith("a ba b")
    assert len(reason_of(ValueError("a" * 10**6))) < 300
    assert reason_of(KeyError()) == "KeyError"
    assert len(shown("x" * 10**6)) < 300
    assert shown("\ud800") == r"'\ud800'"
    assert shown("é") == "'é'"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("absent", "No such file"),
        ("a" * 300, "name too long"),
        ("dangling", "No such file"),
        ("loop", "symbolic links"),
        ("file/below", "Not a directory"),
        (".", "it is a directory"),
        ("fifo", "no regular file"),
        ("/dev/zero", "no regular file"),
        ("/proc/self/mem/x", "Not a directory"),
    ],
)
def test_what_cannot_be_read_is_told_at_once(tmp_path, path, reason):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    where = tmp_path / path
    with pytest.raises(UserError, match=f"(?i){reason}.*: mend it"), told(where, "mend it"):
        open_regular(where)


def test_what_replaces_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail():
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
    with replacing(path) as file:
        file.write(b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"new"]
