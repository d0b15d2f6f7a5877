"""What commands compile is kept in the user's folder, unless the user says otherwise."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from experiments import cli, compile_cache, train
from experiments.sweeps.machine import compiled

ROOT = Path(__file__).parents[2]
DIRECTORY, SECONDS = compile_cache.DIRECTORY, compile_cache.SECONDS


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Iterator[Path]:
    """Where programs go by default, of a user who has chosen nothing."""
    before = {name: getattr(jax.config, name) for name in (DIRECTORY, SECONDS)}
    for name in before:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update(DIRECTORY, None)
    yield tmp_path / "carve_jax" / "xla"
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_where_only_the_user_writes(folder, capsys) -> None:
    compile_cache.keep_compiled()
    assert compile_cache.directory() == str(folder)
    assert getattr(jax.config, SECONDS) == compile_cache.LEAST_SECONDS
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert capsys.readouterr().err == ""


def test_the_user_s_choice_stays(folder, monkeypatch, tmp_path) -> None:
    for chosen in ("", str(tmp_path / "mine")):
        jax.config.update(DIRECTORY, chosen)
        compile_cache.keep_compiled()
        assert compile_cache.directory() == chosen
    jax.config.update(DIRECTORY, None)
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compile_cache.keep_compiled()
    jax.config.update("jax_enable_compilation_cache", enabled)
    assert compile_cache.directory() is None
    assert not folder.exists()

    monkeypatch.setenv(SECONDS.upper(), "3")
    jax.config.update(SECONDS, 3.0)
    compile_cache.keep_compiled()
    assert getattr(jax.config, SECONDS) == 3.0


def test_a_folder_that_cannot_be_used_is_one_line(folder, capsys) -> None:
    def said() -> str:
        compile_cache.keep_compiled()
        assert compile_cache.directory() is None
        [line] = capsys.readouterr().err.splitlines()
        return line

    folder.parent.mkdir()
    folder.write_text("")
    assert "cannot be made (File exists)" in said()
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o777)
    assert "others may write to" in said()


def test_what_was_not_used_for_longest_is_removed(folder, monkeypatch) -> None:
    folder.mkdir(mode=0o700, parents=True)
    for used, name in enumerate(("oldest-cache", "older-cache", "newest-cache", "other")):
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (used, used))
    monkeypatch.setattr(compile_cache, "MOST_BYTES", 15)
    compile_cache.keep_compiled()
    assert {path.name for path in folder.iterdir()} == {"newest-cache", "other"}


def test_commands_keep_what_they_compile(folder, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(cli, "call", lambda main, argv: 0)

    def kept(*arguments: str) -> str | None:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit):
            cli.run(train.main)
        return compile_cache.directory()

    assert kept("--help") is None
    assert kept() == str(folder)


def test_a_run_of_several_processes_keeps_none_by_default(folder, monkeypatch) -> None:
    arguments = ["train", "--coordinator=localhost:1", "--processes=2", "--process=0"]

    def joined(peers) -> None:
        assert peers.processes == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(train.distributed, "joined", joined)
    compile_cache.keep_compiled()
    with pytest.raises(KeyboardInterrupt):
        train.main(arguments)
    assert compile_cache.directory() is None
    monkeypatch.setenv(DIRECTORY.upper(), "shared")
    jax.config.update(DIRECTORY, "shared")
    with pytest.raises(KeyboardInterrupt):
        train.main(arguments)
    assert compile_cache.directory() == "shared"


def test_runs_of_a_sweep_share_what_the_sweep_keeps(folder) -> None:
    with compiled() as variables:
        own = Path(variables[DIRECTORY.upper()])
        assert own.is_dir()
    assert not own.exists()
    compile_cache.keep_compiled()
    with compiled() as variables:
        assert variables[DIRECTORY.upper()] == str(folder)


def test_commands_alone_keep_programs() -> None:
    rooms = ("carve_jax", "pallas_kernels", "experiments", "configs", "examples")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    naming = {path.name for path in files if DIRECTORY in path.read_text("utf-8")}
    assert naming == {"compile_cache.py"}
