import hashlib
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from carve_jax.data import is_held_out, make_pipeline
from carve_jax.errors import UserError
from experiments import cli
from experiments.preparation.prepare import Settings, prepare
from experiments.preparation.sources import list_sources, read_work, survey
from experiments.preparation.work import Columns, WorkSize
from experiments.prepare_data import main
from tests.experiments.preparation.made import SETTINGS, SMALL_SHARDS, files_of


@pytest.fixture
def texts(tmp_path):
    directory = tmp_path / "texts"
    (directory / "deep").mkdir(parents=True)
    (directory / "one.txt").write_text("one text, whole")
    (directory / "deep" / "two.md").write_text("two, é")
    (directory / "skipped.bin").write_bytes(b"\x00")
    lines = [json.dumps({"text": f"line {i} of the file"}) for i in range(40)]
    (directory / "many.jsonl").write_text("\n".join(lines) + "\n\n")
    return directory


def read(path, split):
    batches = make_pipeline(
        {"source": "token_files", "path": str(path)},
        batch_size=1,
        sequence_length=64,
        segment_alignment=64,
        seed=0,
    ).eval_batches()
    assert split == "eval"
    return [bytes(b["targets"][0][b["loss_mask"][0] == 1].astype(np.uint8)) for b in batches]


def test_text_and_jsonl_become_documents_of_two_splits(texts, tmp_path):
    files = prepare([str(texts)], tmp_path / "out", SETTINGS)
    names = ["deep/two.md", "one.txt", *(f"many.jsonl:{i + 1}" for i in range(40))]
    held_out = {name for name in names if is_held_out(name, 0.3)}
    (train,), (evaluation,) = (list(h.values()) for h in files.headers.values())
    assert evaluation.documents == len(held_out)
    assert train.documents == len(names) - len(held_out)
    lines = {f"many.jsonl:{i + 1}": f"line {i} of the file".encode() for i in range(40)}
    known = lines | {"one.txt": b"one text, whole", "deep/two.md": "two, é".encode()}
    assert sorted(read(tmp_path / "out", "eval")) == sorted(known[name] for name in held_out)
    assert train.bytes + evaluation.bytes == sum(map(len, known.values()))


def test_bpe_and_its_tokenizer_file_can_be_used_again(texts, tmp_path):
    first = prepare([str(texts)], tmp_path / "a", Settings("bpe", 280, 0.3))
    assert first.tokenizer.vocab_size == 280
    path = str(tmp_path / "a" / "tokenizer.json")
    second = prepare([str(texts)], tmp_path / "b", Settings(path, 0, 0.3))
    assert second.headers == first.headers


def broken(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_bad_inputs_are_said_and_leave_nothing(texts, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "none").mkdir()
    for inputs, said in [
        ([str(tmp_path / "absent")], "no file, directory, 'stdlib' or 'package_docs'"),
        ([str(tmp_path / "none")], "no text files"),
        ([broken(tmp_path, "a.jsonl", '{"text": 1}\n')], r"a\.jsonl:1 is not a JSON object"),
        ([broken(tmp_path, "b.jsonl", '{"text": "x"}\n[')], r"b\.jsonl:2 is not a JSON object"),
        ([broken(tmp_path, "e.jsonl.gz", "")], "compressed; unpack it"),
        ([broken(tmp_path, "f.jsonl", "")], "0 training and 0 held-out"),
        ([broken(tmp_path, "c.txt", "alone")], "1 training and 0 held-out"),
        ([broken(tmp_path, "d.txt", "")], "0 training and 0 held-out"),
    ]:
        with pytest.raises(UserError, match=said):
            prepare(inputs, out, SETTINGS)
        assert not out.exists()
    with pytest.raises(UserError, match="between 0 and 1"):
        prepare([str(texts)], out, SETTINGS._replace(eval_fraction=1.0))
    with pytest.raises(UserError, match="--workers is 0"):
        prepare([str(texts)], out, SETTINGS, workers=0)
    with pytest.raises(UserError, match="--shard_tokens is 0"):
        prepare([str(texts)], out, SETTINGS._replace(shard_tokens=0))
    with pytest.raises(UserError, match="not a JSON of the tokenizers library"):
        prepare([str(texts)], out, SETTINGS._replace(tokenizer=broken(tmp_path, "t.json", "{}")))
    assert not out.exists()
    with pytest.raises(UserError, match="is not a JSON object"):
        prepare([broken(tmp_path, "a.jsonl", '{"text": 1}\n')], tmp_path / "x/y/z", SETTINGS)
    assert not (tmp_path / "x").exists()
    out.mkdir()  # is the caller's, and stays
    with pytest.raises(UserError, match="is not a JSON object"):
        prepare([broken(tmp_path, "a.jsonl", '{"text": 1}\n')], out, SETTINGS)
    assert not list(out.iterdir())
    with pytest.raises(UserError, match="cannot be made"):
        prepare([str(texts)], texts / "one.txt" / "out", SETTINGS)


def test_token_files_are_not_written_over(texts, tmp_path):
    prepare([str(texts)], tmp_path / "out", SETTINGS)
    before = (tmp_path / "out" / "train-00000.bin").read_bytes()
    with pytest.raises(UserError, match="holds token files already"):
        prepare([str(texts)], tmp_path / "out", SETTINGS._replace(eval_fraction=0.5))
    assert (tmp_path / "out" / "train-00000.bin").read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "name", ["train-00000.offsets", "eval-00000.bin", "tokenizer.json", "manifest.json"]
)
def test_a_full_disk_leaves_nothing(texts, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{name}.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        prepare([str(texts)], out, SETTINGS)
    assert not list(out.iterdir())


def test_progress_counts_all_bytes_of_the_files(texts):
    found = [survey(source, Columns(), WorkSize()) for source in list_sources([str(texts)])]
    sizes = {path.name: path.stat().st_size for path in texts.rglob("*.*")}
    for one in found:
        assert sum(work.size for work in one.work) == one.facts["bytes"]
        assert one.facts["bytes"] == sizes[Path(one.facts["name"]).name]
    assert sum(len(list(read_work(work, Columns()))) for one in found for work in one.work) == 42


def test_shards_end_with_the_document_that_fills_them(many, tmp_path):
    files = prepare([str(many)], tmp_path / "out", SMALL_SHARDS)
    *full, last = files.headers["train"].values()
    assert len(full) > 5
    assert list(files.headers["train"]) == [f"train-{i:05d}" for i in range(len(full) + 1)]
    assert len(files.headers["eval"]) == len(full) + 1
    for shard, header in zip(files.documents("train"), full, strict=False):
        assert header.tokens >= 400 > shard.offsets[-2]
    assert last.tokens < 400 or not last.documents
    one = prepare([str(many)], tmp_path / "one", SETTINGS)
    for split in ("train", "eval"):
        joined = np.concatenate([s.tokens for s in files.documents(split)])
        np.testing.assert_array_equal(joined, one.documents(split)[0].tokens)
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert facts["complete"]
    assert facts["done_bytes"] == sum(source["bytes"] for source in facts["sources"])
    for source in facts["sources"]:
        raw = (many / source["name"]).read_bytes()
        assert source["bytes"] == len(raw)
        assert source["sha256"] == hashlib.sha256(raw).hexdigest()
    assert facts["settings"]["shard_tokens"] == 400
    headers = files.headers["train"] | files.headers["eval"]
    assert {name: shard["sha256"] for name, shard in facts["shards"].items()} == {
        name: header.sha256 for name, header in headers.items()
    }


def test_the_files_do_not_depend_on_how_they_are_cut_into_work(many, tmp_path):
    def contents(directory):
        files = files_of(directory)
        facts = json.loads(files.pop("manifest.json"))
        del facts["position"], facts["settings"]["work"], facts["check_sha256"]
        return files, facts

    prepare([str(many)], tmp_path / "small", SMALL_SHARDS)
    prepare([str(many)], tmp_path / "large", SMALL_SHARDS._replace(work=WorkSize()))
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


def test_any_number_of_workers_writes_the_same_files(many, tmp_path):
    prepare([str(many)], tmp_path / "one", SMALL_SHARDS)
    prepare([str(many)], tmp_path / "two", SMALL_SHARDS, workers=2)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


@pytest.mark.slow  # always: with one worker
def test_a_bad_line_ends_all_workers(many, tmp_path):
    bad = many / "z.jsonl"
    bad.write_text('{"text": "good"}\n{"text": 3}\n')
    with pytest.raises(UserError, match=r"z\.jsonl:2 is not a JSON object"):
        prepare([str(many)], tmp_path / "bad", SETTINGS, workers=2)
    assert not (tmp_path / "bad").exists()


def test_named_documents_are_held_out_by_their_names(tmp_path):
    lines = [json.dumps({"body": f"text {i} ", "id": f"n{i}"}) for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text("\n".join(reversed(lines)))
    settings = SETTINGS._replace(columns=Columns("body", "id"))
    found = [
        sorted(read_eval(prepare([str(tmp_path / f)], tmp_path / f[0], settings)))
        for f in ("a.jsonl", "b.jsonl")
    ]
    assert found[0] == found[1]
    assert found[0] == sorted(f"text {i} ".encode() for i in range(40) if is_held_out(f"n{i}", 0.3))
    with pytest.raises(UserError, match=r'a\.jsonl:1 is not a JSON object with a string "text"'):
        prepare([str(tmp_path / "a.jsonl")], tmp_path / "c", SETTINGS)


def read_eval(files):
    return [
        bytes(shard.tokens[start:end].astype(np.uint8))
        for shard in files.documents("eval")
        for start, end in itertools.pairwise(shard.offsets.tolist())
    ]


def test_parquet_holds_what_the_same_lines_hold(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"row {i} " * (1 + i % 9) for i in range(60)]
    names = [f"<urn:uuid:{i}>" for i in range(60)]
    table = pyarrow.table({"text": texts, "id": names, "score": [0.5] * 60})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=25)
    lines = [json.dumps({"text": t, "id": n}) for t, n in zip(texts, names, strict=True)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    (source,) = list_sources([str(tmp_path / "x.parquet")])
    found = survey(source, Columns(), WorkSize(300, 7))
    assert [w.end - w.start for w in found.work] == [7, 7, 7, 4, 7, 7, 7, 4, 7, 3]
    assert sum(w.size for w in found.work) == (tmp_path / "x.parquet").stat().st_size
    documents = [d for w in found.work for d in read_work(w, Columns())]
    assert documents == [(f"x.parquet:{i + 1}", t.encode()) for i, t in enumerate(texts)]

    settings = SMALL_SHARDS._replace(columns=Columns("text", "id"))
    ours = prepare([str(tmp_path / "x.parquet")], tmp_path / "parquet", settings)
    theirs = prepare([str(tmp_path / "x.jsonl")], tmp_path / "lines", settings)
    assert ours.headers == theirs.headers
    assert len(ours.headers["train"]) > 2

    without = pyarrow.table({"text": ["a", None], "number": [1, 2]})
    parquet.write_table(without, tmp_path / "y.parquet")
    (tmp_path / "z.parquet").write_text("no Parquet")
    for name, columns, said in [
        ("x", Columns("txt"), "no column 'txt'; did you mean 'text'"),
        ("x", Columns("text", "uid"), "no column 'uid'; did you mean 'id'"),
        ("x", Columns("score"), "'score' of .* holds double"),
        ("y", Columns(), "row 2 has no 'text'"),
        ("z", Columns(), "cannot be read as a Parquet file"),
    ]:
        out = tmp_path / "bad"
        with pytest.raises(UserError, match=said):
            prepare([str(tmp_path / f"{name}.parquet")], out, SETTINGS._replace(columns=columns))
        assert not out.exists()
    out.mkdir()
    (out / "tokenizer.json").write_text("mine")  # nothing was written yet that is to be removed
    with pytest.raises(UserError, match="cannot be read as a Parquet file"):
        prepare([str(tmp_path / "z.parquet")], out, SETTINGS)
    assert (out / "tokenizer.json").read_text() == "mine"


def test_parquet_without_its_package_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"needs the package pyarrow; install .* extra parquet"):
        prepare([str(tmp_path / "x.parquet")], tmp_path / "out", SETTINGS)


def test_the_command_and_a_user_mistake(texts, tmp_path, capsys):
    out = tmp_path / "out"
    made = [f"--input={texts}", f"--output={out}", "--eval_fraction=0.3", "--workers=1"]
    assert cli.call(main, ["prepare_data", *made]) == 0
    assert "uint16 tokens in train-00000.bin" in capsys.readouterr().out
    assert cli.call(main, ["prepare_data", f"--output={out}", "--verify"]) == 0
    assert "2 shards are what was written" in capsys.readouterr().out
    assert cli.call(main, ["prepare_data", "--verify"]) == 2
    assert "--output is missing" in capsys.readouterr().err
    assert cli.call(main, ["prepare_data", f"--input={texts}", f"--output={out}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "holds token files already" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--input is missing"),
        (["--input=stdlib"], "--output is missing"),
        (["--input=stdlib", "--outputs=x"], "unknown flag --outputs"),
        (["--input=stdlib", "b.txt"], "unexpected argument 'b.txt'"),
        (["--input=stdlib", "--output=x", "--vocab_size=many"], "vocab_size"),
    ],
)
def test_mistaken_flags_are_said(arguments, said, capsys):
    assert cli.call(main, ["prepare_data", *arguments]) == 2
    assert said in capsys.readouterr().err
