import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from carve_jax.errors import UserError
from carve_jax.training.data import is_held_out, make_pipeline
from experiments import cli
from experiments.prepare_data import list_files, main, prepare, read_documents

ROOT = Path(__file__).parents[3]


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
    files = prepare([str(texts)], tmp_path / "out", "bytes", 0, 0.3)
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
    first = prepare([str(texts)], tmp_path / "a", "bpe", 280, 0.3)
    assert first.tokenizer.vocab_size == 280
    path = str(tmp_path / "a" / "tokenizer.json")
    second = prepare([str(texts)], tmp_path / "b", path, 0, 0.3)
    assert second.headers == first.headers


def broken(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_bad_inputs_are_said_and_leave_nothing(texts, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "none").mkdir()
    for inputs, said in [
        ([str(tmp_path / "absent")], "no file, directory or 'stdlib'"),
        ([str(tmp_path / "none")], "no text files"),
        ([broken(tmp_path, "a.jsonl", '{"text": 1}\n')], r"a\.jsonl:1 is not a JSON object"),
        ([broken(tmp_path, "b.jsonl", '{"text": "x"}\n[')], r"b\.jsonl:2 is not a JSON object"),
        ([broken(tmp_path, "c.txt", "alone")], "1 training and 0 held-out"),
        ([broken(tmp_path, "d.txt", "")], "0 training and 0 held-out"),
    ]:
        with pytest.raises(UserError, match=said):
            prepare(inputs, out, "bytes", 0, 0.3)
        assert not out.exists() or not list(out.iterdir())
    with pytest.raises(UserError, match="between 0 and 1"):
        prepare([str(texts)], out, "bytes", 0, 1.0)
    with pytest.raises(UserError, match="cannot be made"):
        prepare([str(texts)], texts / "one.txt" / "out", "bytes", 0, 0.3)


def test_token_files_are_not_written_over(texts, tmp_path):
    prepare([str(texts)], tmp_path / "out", "bytes", 0, 0.3)
    before = (tmp_path / "out" / "train-00000.bin").read_bytes()
    with pytest.raises(UserError, match="holds token files already"):
        prepare([str(texts)], tmp_path / "out", "bytes", 0, 0.5)
    assert (tmp_path / "out" / "train-00000.bin").read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["train-00000.offsets", "eval-00000.bin", "tokenizer.json"])
def test_a_full_disk_leaves_nothing(texts, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{name}.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        prepare([str(texts)], out, "bytes", 0, 0.3)
    assert not list(out.iterdir())


def test_progress_counts_all_bytes_of_the_files(texts):
    files = list_files([str(texts)])
    counts = []
    assert len(list(read_documents(files, counts.append))) == 42
    assert sum(counts) == sum(path.stat().st_size for path, _ in files)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.prepare_data", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_and_a_user_mistake(texts, tmp_path):
    out = tmp_path / "out"
    done = command(f"--input={texts}", f"--output={out}", "--eval_fraction=0.3")
    assert done.returncode == 0, done.stderr
    assert "uint16 tokens in train-00000.bin" in done.stdout
    again = command(f"--input={texts}", f"--output={out}")
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "holds token files already" in again.stderr
    assert "Traceback" not in again.stderr


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
