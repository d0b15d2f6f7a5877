"""Files that others may have touched: no traceback, no hang, nothing outside the folder."""

import json
import os
import subprocess
import sys
import time

import pytest

from carve_jax.errors import UserError
from carve_jax.files import (
    digest_of,
    held,
    inside,
    locks,
    read_json,
    read_json_lines,
    try_lock,
    write_atomically,
    write_new,
)

HOSTILE = {
    "empty": b"",
    "cut": b'{"a": 1',
    "a list": b"[]",
    "a number": b"1",
    "not UTF-8": b'{"a": "\xff"}',
    "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge integer": b'{"a": ' + b"1" * 5000 + b"}",
    "21 digits": b'{"a": -' + b"1" * 21 + b"}",
    "half a pair": b'{"a": "' + b"y" * 100_000 + b'\\ud83d"}',
    "a name twice": b'{"a": {"b": 1, "b": 1}}',
    "nul": b"\0" * 100,
    "utf-16": '{"a": 1}'.encode("utf-16"),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_json_is_one_short_sentence(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x.json cannot be read \(.*\): mend it") as caught:
        read_json(path, mend="mend it")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(b" " * 100)
    for name, reason in (
        ("fifo", "no regular file"),
        ("folder", "it is a directory"),
        ("large", "100 bytes, and at most 50"),
    ):
        with pytest.raises(UserError, match=reason):
            read_json(tmp_path / name, largest=50)
    with pytest.raises(UserError, match="no regular file"):
        read_json(type(tmp_path)("/dev/zero"))
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")


def test_good_json_is_read_whatever_it_holds(tmp_path):
    value = {"a": [1.5, None, -(2**63)], "caf\xe9": "\U0001f642", "nan": float("inf")}
    (tmp_path / "x").write_text(json.dumps(value))
    assert read_json(tmp_path / "x") == value
    (tmp_path / "x").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    assert read_json(tmp_path / "x") == value


def test_a_damaged_line_hides_no_other(tmp_path):
    lines = [b'{"step": 1}', *HOSTILE.values(), b'{"step": 2}', b'{"step": 3']
    (tmp_path / "x").write_bytes(b"\n".join(lines))
    found, damaged = read_json_lines(tmp_path / "x")
    assert found == [{"step": 1}, {"step": 2}]
    assert len(damaged) == len(HOSTILE)  # without the empty line, with the cut one
    assert damaged[0] == (3, b'{"a": 1', "no JSON: Expecting ',' delimiter in line 1, column 8")


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, "old \u6f22")
    assert path.read_bytes() == "old \u6f22".encode()
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
            with pytest.raises(OSError, match="full"):
                write_atomically(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert not write_new(path, "other")
    assert write_new(tmp_path / "y", b"other")
    assert path.read_text(encoding="utf-8") == "old \u6f22"


def test_files_are_synced_before_they_get_their_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace", "link"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (done.append(n), r(*a))[1])
    write_atomically(tmp_path / "x", "x")
    write_new(tmp_path / "y", "y")
    assert done == ["fsync", "replace", "fsync", "fsync", "link", "fsync"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "C:x",
        "a\0b",
        "a\nb",
        "*",
        7,
        None,
        ["x"],
    ],
)
def test_names_stay_in_their_folder(tmp_path, name):
    with pytest.raises(UserError, match=r"theory.json names .* no plain name"):
        inside(tmp_path, name, "theory.json")


def test_links_do_not_lead_out_of_a_folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "out.png").symlink_to(tmp_path / "secret")
    (folder / "own.png").write_text("x")
    (folder / "same.png").symlink_to(folder / "own.png")
    with pytest.raises(UserError, match="a link that leads out"):
        inside(folder, "out.png", "x")
    assert inside(folder, "same.png", "x") == folder / "same.png"
    assert inside(folder, "caf\xe9 1.png", "x").parent == folder


def test_a_digest_is_of_content_and_not_of_place(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place / "sub").mkdir(parents=True)
        (tmp_path / place / "x.yaml").write_text("x")
        (tmp_path / place / "sub" / "y.py").write_text("y")
    assert digest_of([tmp_path / "a"]) == digest_of([tmp_path / "b"])
    (tmp_path / "b" / "sub" / ".cache").write_text("no matter")
    assert digest_of([tmp_path / "a"]) == digest_of([tmp_path / "b"])
    before = digest_of([tmp_path / "a", tmp_path / "none"])
    (tmp_path / "a" / "sub" / "y.py").write_text("z")
    assert digest_of([tmp_path / "a", tmp_path / "none"]) != before


HOLDER = """
import pathlib, sys, time
from carve_jax.files import held
with held(pathlib.Path(sys.argv[1]), "DIR"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_is_of_one_process_and_ends_with_it(tmp_path, holder):
    path = tmp_path / ".lock"
    begun = time.monotonic()
    said = rf"^DIR is in use by process {holder.pid} on .* \(since 20.*\): wait for its end or stop"
    with pytest.raises(UserError, match=said), held(path, "DIR"):
        pass
    assert try_lock(path) is None
    holder.kill()
    holder.wait()
    with held(path, "DIR"):  # what it wrote is still there, and not waited for
        pass
    assert time.monotonic() - begun < 2
    assert path.read_bytes() == b""


def other_machine(path, monkeypatch, pulse=None):
    """A note of a process elsewhere, on storage whose locks are each machine's own."""
    monkeypatch.setattr(locks, "BEAT", 0.1)
    note = {"machine": "elsewhere", "host": "node7", "pid": 12, "since": "then", "beat": "0"}
    path.write_text(json.dumps(note))
    if pulse:
        monkeypatch.setattr(
            locks.time, "sleep", lambda _: path.write_text(json.dumps({**note, "beat": "1"}))
        )


def test_a_holder_elsewhere_that_lives_keeps_its_lock(tmp_path, monkeypatch):
    other_machine(tmp_path / ".lock", monkeypatch, pulse=True)
    said = []
    with (
        pytest.raises(UserError, match="DIR is in use by process 12 on node7"),
        held(tmp_path / ".lock", "DIR", say=said.append),
    ):
        pass
    assert said == [
        "DIR was not left by process 12 on node7: looking for 0 s whether it still runs"
    ]


def test_a_holder_elsewhere_that_died_loses_its_lock(tmp_path, monkeypatch):
    other_machine(tmp_path / ".lock", monkeypatch)
    begun = time.monotonic()
    with held(tmp_path / ".lock", "DIR"):
        assert time.monotonic() - begun > 0.3
        first = locks._note(tmp_path / ".lock")
        assert first["pid"] == os.getpid()
        deadline = time.monotonic() + 10
        while locks._note(tmp_path / ".lock")["beat"] == first["beat"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert locks._note(tmp_path / ".lock") is None


def test_storage_without_locks_still_knows_its_holder(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(locks.errno.ENOLCK, "no locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with held(tmp_path / ".lock", "DIR"):
        assert locks._note(tmp_path / ".lock")["pid"] == os.getpid()


def test_a_lock_writes_to_no_other_file(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("link", "fifo", "folder"):
        with pytest.raises(UserError, match="must be a plain file: remove it"):
            try_lock(tmp_path / name)
    assert (tmp_path / "precious").read_text() == "x"
