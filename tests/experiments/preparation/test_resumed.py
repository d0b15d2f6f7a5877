"""Preparation that is killed, stopped, or finds the disk full, and is begun again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from carve_jax.data import TokenFiles
from carve_jax.data.token_files.manifest import Manifest
from carve_jax.errors import UserError
from experiments.preparation.prepare import prepare
from tests.experiments.preparation.made import SMALL_SHARDS, files_of

ROOT = Path(__file__).parents[3]


KILLED = """
import os, signal, sys
from pathlib import Path
from experiments.preparation.prepare import Settings, prepare
from experiments.preparation.work import WorkSize
from carve_jax.data.token_files import shard_writer

inputs, out = sys.argv[1], Path(sys.argv[2])
settings = Settings(eval_fraction=0.3, shard_tokens=400, work=WorkSize(300, 7))
sys.stderr = open(os.devnull, "w")


def run(last):
    left = [last]

    def counted(function):
        def call(*arguments, **keywords):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    # All that changes a file passes here, so a kill falls before any change, and behind the last.
    shard_writer.os.replace = counted(os.replace)
    shard_writer.os.fsync = counted(os.fsync)
    write = shard_writer.ShardWriter.write_documents
    shard_writer.ShardWriter.write_documents = counted(write)
    prepare([inputs], out, settings)
    os._exit(0)


kills = 0
for last in [*range(1, 20), 23, 29, 31, 37, 41, 10**9]:
    child = os.fork()
    if child == 0:
        run(last)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        kills += 1
        continue
    assert status == 0, status
    break
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_again_and_again_it_ends_with_the_same_files(many, tmp_path):
    """Each run is killed at another point of its writing, and the next goes on."""
    prepare([str(many)], tmp_path / "straight", SMALL_SHARDS)
    out = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(many), str(out)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 15
    found = files_of(out)
    assert found == files_of(tmp_path / "straight")


class Stopped(Exception):
    pass


def interrupted(many, out, monkeypatch, settings=SMALL_SHARDS, parts=3):
    """A run that ends behind so many pairs of shards."""
    write = Manifest.write

    def stop(self, directory):
        write(self, directory)
        if len(self.shards) == 2 * parts:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", stop)
        with pytest.raises(Stopped):
            prepare([str(many)], out, settings)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_whole_shards_are_kept_and_not_written_again(many, tmp_path, monkeypatch, tokenizer):
    settings = SMALL_SHARDS._replace(tokenizer=tokenizer, vocab_size=270)
    out = tmp_path / "out"
    interrupted(many, out, monkeypatch, settings)
    with pytest.raises(UserError, match="half-written: 6 shards"):
        TokenFiles(out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*-0000[012].*")}
    assert len(times) == 24
    resumed = prepare([str(many)], out, settings)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    straight = prepare([str(many)], tmp_path / "straight", settings)
    assert resumed.headers == straight.headers


def test_another_run_does_not_go_on(many, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupted(many, out, monkeypatch)
    before = files_of(out)
    for settings, said in [
        (SMALL_SHARDS._replace(eval_fraction=0.5), "eval_fraction was 0.3 and is 0.5"),
        (SMALL_SHARDS._replace(shard_tokens=500), "shard_tokens was 400 and is 500"),
        (SMALL_SHARDS._replace(tokenizer="bpe", vocab_size=270), "tokenizer was 'bytes' and is"),
    ]:
        with pytest.raises(UserError, match=f"half-written by another run: {said}"):
            prepare([str(many)], out, settings)
    shard = out / "train-00001.json"
    shard.rename(tmp_path / "aside")
    with pytest.raises(UserError, match="the shard train-00001 is gone"):
        prepare([str(many)], out, SMALL_SHARDS)
    (tmp_path / "aside").rename(shard)
    (many / "c.txt").write_text("two more text")
    with pytest.raises(UserError, match="the inputs are others, or have changed"):
        prepare([str(many)], out, SMALL_SHARDS)
    assert files_of(out) == before


def test_a_full_disk_keeps_whole_shards(many, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupted(many, out, monkeypatch)
    before = files_of(out)
    write = Manifest.write

    def full(self, directory):
        raise UserError("full") if len(self.shards) > 6 else write(self, directory)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", full)
        with pytest.raises(UserError, match="full"):
            prepare([str(many)], out, SMALL_SHARDS)
    assert before.items() <= files_of(out).items()
    prepare([str(many)], out, SMALL_SHARDS)
    prepare([str(many)], tmp_path / "straight", SMALL_SHARDS)
    assert files_of(out) == files_of(tmp_path / "straight")
