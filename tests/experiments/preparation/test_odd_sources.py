"""Sources that are damaged, odd or huge: the right documents, or one short sentence; no hang, no
death, nothing dropped without a word. One case a kind."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from carve_jax.data.token_files.manifest import Manifest
from carve_jax.errors import UserError
from experiments.preparation.prepare import Settings, prepare
from experiments.preparation.sources import list_sources, read_work, survey
from experiments.preparation.work import Columns, Source, WorkSize

LINES = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(3))
SHORT = 700  # characters of a sentence, besides paths


def documents(path, columns=Columns(), most=WorkSize()):  # noqa: B008  # named tuples
    source = Source(path, path.name)
    return [d for work in survey(source, columns, most).work for d in read_work(work, columns)]


@pytest.mark.parametrize("name", ["c4.json", "A.JSONL", "x.ndjson", "y.Json"])
def test_json_lines_are_known_by_any_of_their_suffixes(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" * (name == "c4.json") + LINES.encode())
    (source,) = list_sources([str(tmp_path / name)])
    assert [d.text for d in documents(source.path)] == [b"document %d" % i for i in range(3)]


def test_what_a_directory_holds_besides_is_said(tmp_path):
    for name in ("b.jsonl", "c.NDJSON", "d.jsonl.gz", "e.bin", "f.bin", "g", ".hidden"):
        (tmp_path / name).write_text("")
    os.mkfifo(tmp_path / "pipe.txt")
    said = []
    found = list_sources([str(tmp_path)], say=said.append)
    assert [source.name for source in found] == ["b.jsonl", "c.NDJSON"]
    (line,) = said
    for part in ("2 .bin", "1 .jsonl.gz", "1 .txt", "1 without suffix"):
        assert part in line
    assert ".hidden" not in line


def test_file_names_need_not_be_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.txt", "w", encoding="utf-8") as file:
        file.write("hello")
    (source,) = list_sources([str(tmp_path)])
    assert source.name == r"\xff.txt"
    assert documents(source.path)[0].text == b"hello"
    (tmp_path / "a.jsonl").write_text(LINES)
    prepare([str(tmp_path)], tmp_path / "out", Settings(eval_fraction=0.5))
    names = [source["name"] for source in Manifest.read(tmp_path / "out").sources]
    assert names == ["a.jsonl", r"\xff.txt"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "x", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"text": "' + b"y" * 1_000_000 + b'\\ud83d"}', "half of a surrogate pair"),
        (b'{"text": "x", "n": ' + b"1" * 100_000 + b"}", "100,000 digits"),
        (b'{"text": "' + b"y" * 1_000_000 + b"\xff", "not UTF-8"),
        (b'{"txt": "x"}', "it has no 'text'"),
        (b'{"text": 1}', "its 'text' is no string"),
        (b"[" + b"1," * 100_000 + b"1]", "it is something else"),
        (b'"' + b"y" * 1_000_000 + b'"', "it is something else"),
    ],
)
def test_a_line_that_is_none_is_one_short_sentence(tmp_path, line, said):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "x"}\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"x\.jsonl:2 is not a JSON object.*{said}") as caught:
        documents(tmp_path / "x.jsonl")
    assert len(str(caught.value)) < SHORT + len(str(tmp_path))


def test_a_long_integer_beside_the_text_is_no_fault_of_it(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "x", "hash": %d}\n' % 2**255)  # noqa: UP031
    assert documents(tmp_path / "x.jsonl") == [("x.jsonl:1", b"x")]


def test_a_document_without_a_name_has_its_lines(tmp_path):
    rows = [{"text": "a", "id": None}, {"text": "b", "id": 7}, {"text": "c", "id": "n"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = [d.name for d in documents(tmp_path / "x.jsonl", Columns("text", "id"))]
    assert names == ["x.jsonl:1", "7", "n"]


@pytest.mark.parametrize("cut", [64, 1 << 20])
def test_what_is_too_large_is_refused_with_the_limit_and_the_option(tmp_path, cut):
    most = WorkSize(bytes=cut, document=300)
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' + json.dumps({"text": "b" * 400}) + "\n")
    (tmp_path / "x.txt").write_text("c" * 301)
    for name in ("x.jsonl", "x.txt"):
        with pytest.raises(UserError, match=r"at most 300 are read.*--largest_document") as caught:
            documents(tmp_path / name, most=most)
        assert ("x.jsonl:2 is" in str(caught.value)) == (name == "x.jsonl")
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "b" * 280}) + "\n")
    assert len(documents(tmp_path / "x.jsonl", most=most)) == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a" * 300, "name too long"),
        ("dangling", "no file, directory"),
        ("loop", "no file, directory|symbolic links"),
        ("pipe", "no file, directory"),
        ("/dev/zero", "no file, directory"),
        ("/proc/nowhere", "no file, directory"),
        ("gs://bucket/x.jsonl", "gs: is not supported"),
    ],
)
def test_inputs_that_are_no_files_are_told_at_once(tmp_path, path, said):
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    where = path if "/" in path else str(tmp_path / path)
    with pytest.raises(UserError, match=f"(?i){said}"):
        list_sources([where])


def test_outputs_that_cannot_be_made_are_told(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "dangling").symlink_to("gone/further")
    monkeypatch.chdir(tmp_path)
    for output in ("dangling", "x.txt", "a" * 300, "/proc/nowhere", "gs://bucket/x"):
        with pytest.raises(UserError, match="--output="):
            prepare(["x.txt"], Path(output), Settings())
    assert not (tmp_path / "gs:").exists()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match="0 held-out"):
        prepare(["x.txt"], Path("~/out"), Settings())
    assert not (tmp_path / "home").exists()  # where it was, and was taken away again
    assert not (tmp_path / "~").exists()


def test_parquet_that_is_odd_is_told(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(),
        1,
        [None, pyarrow.py_buffer(np.array([0, 2], np.int32)), pyarrow.py_buffer(b"\xff\xfe")],
    )
    good = pyarrow.array(["a"])
    for name, columns, said in [
        ("twice", {"text": good, "also": good}, "more than one column 'text'; rename"),
        ("text", {"text": broken}, "row 1 has no 'text' that reads .*not UTF-8"),
        ("id", {"text": good, "id": broken}, "row 1 has no 'id' that reads .*not UTF-8"),
    ]:
        names = ["text", "text"] if name == "twice" else list(columns)
        table = pyarrow.table(list(columns.values()), names=names)
        parquet.write_table(table, tmp_path / "x.parquet")
        with pytest.raises(UserError, match=said):
            documents(tmp_path / "x.parquet", Columns("text", "id" if name == "id" else ""))
    table = pyarrow.table({"text": ["a" * 400]})
    parquet.write_table(table, tmp_path / "x.PARQUET")
    with pytest.raises(UserError, match=r"row 1 is a document of 400 .*--largest_document"):
        documents(tmp_path / "x.PARQUET", most=WorkSize(document=300))
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(UserError, match="no regular file"):
        documents(tmp_path / "pipe.parquet")
