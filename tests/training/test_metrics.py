"""metrics.jsonl: no line is lost to a damaged one, to another process, or to a locale."""

import json

import pytest

from carve_jax.errors import UserError
from carve_jax.files import held
from carve_jax.training import loop
from carve_jax.training.reports import provenance
from carve_jax.training.reports.metrics import MetricsLog, read_metrics
from carve_jax.training.workdir import LOCK
from tests.training.helpers import tiny_config

DAMAGE = (b"garbage", b"\x00\xff", b"[1]", b"1", b'{"loss": 1.0}', b'{"step": 2, "loss": [1]}')


def steps(workdir):
    return [line["step"] for line in read_metrics(workdir)]


def write(workdir, first, last, resume=0, said=None):
    with MetricsLog(workdir, resume, (said if said is not None else []).append) as log:
        for step in range(first, last + 1):
            log.write(step, {"loss": 1.0 / step})


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b""])
def test_damaged_provenance_is_told_and_written_anew(tmp_path, content):
    path, said = tmp_path / provenance.FILE_NAME, []
    path.write_bytes(content)
    provenance.write_provenance(tmp_path, {"commit": "a"}, said.append)
    (line,) = said
    assert line.startswith(f"{path} cannot be read (")
    assert line.endswith("): it is written anew, without the earlier starts")
    found = json.loads(path.read_text("utf-8"))
    assert (found["commit"], found["earlier"]) == ("a", [{"damaged": line}])
    provenance.write_provenance(tmp_path, {"commit": "b"}, said.append)
    assert len(said) == 1


def test_reading_tells_of_damaged_lines(tmp_path):
    write(tmp_path, 1, 3)
    said = []
    read_metrics(tmp_path, said.append)
    assert not said
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"garbage\n1\n")
    assert len(read_metrics(tmp_path, said.append)) == 3
    (line,) = said
    assert line.startswith(f"{tmp_path / 'metrics.jsonl'}: 2 damaged lines are passed over (")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_takes_no_other_with_it(tmp_path, damage):
    write(tmp_path, 1, 6)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[2] = damage
    path.write_bytes(b"\n".join(lines))
    assert steps(tmp_path) == [1, 2, 4, 5, 6]
    said = []
    write(tmp_path, 7, 8, resume=6, said=said)
    assert steps(tmp_path) == [1, 2, 4, 5, 6, 7, 8]
    assert len(said) == 1
    assert "1 damaged lines" in said[0]
    assert "kept in metrics_damaged.jsonl" in said[0]
    assert (tmp_path / "metrics_damaged.jsonl").read_bytes().strip()


def test_a_line_that_a_kill_cut_off_is_no_damage(tmp_path):
    write(tmp_path, 1, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    said = []
    write(tmp_path, 3, 4, resume=2, said=said)
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert said == []
    assert not (tmp_path / "metrics_damaged.jsonl").exists()


def test_nothing_is_touched_before_there_is_a_line(tmp_path):
    write(tmp_path, 1, 3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    write(tmp_path, 1, 0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_what_is_no_file_of_lines_is_a_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be read \(it is a directory\): mo"):
        read_metrics(tmp_path)


def test_a_directory_is_of_one_run_at_a_time(tmp_path):
    config = tiny_config(steps=1, data__eval_examples=4)
    before = json.dumps({"steps": 7})
    (tmp_path / "config.json").write_text(before)
    with (
        held(tmp_path / LOCK, "DIR"),
        pytest.raises(UserError, match=r"is in use by process \d+ on .*: wait for its end"),
    ):
        loop.train(config, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.json"]
    assert (tmp_path / "config.json").read_text() == before
