import itertools
import json
import os

import numpy as np
import pytest

from carve_jax.data import (
    ByteTokenizer,
    ShardWriter,
    TokenFiles,
    make_pipeline,
    train_bpe,
)
from carve_jax.data.token_files.manifest import Manifest, shard_facts
from carve_jax.data.token_files.shard_header import TOKENIZER_FILE
from carve_jax.errors import UserError
from tests.data.helpers import write_shards

TEXTS = [b"the first document", b"second", b"the third"]


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "data", train_00000=TEXTS[:2], eval_00000=TEXTS[2:])


def edit_header(directory, **changes):
    path = directory / "train-00000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def texts_of(documents):
    return [
        bytes(shard.read(start, end).astype(np.uint8))
        for shard in documents
        for start, end in itertools.pairwise(shard.offsets.tolist())
    ]


def test_what_is_written_is_read(shards):
    files = TokenFiles(shards)
    assert texts_of(files.documents("train")) == TEXTS[:2]
    assert texts_of(files.documents("eval")) == TEXTS[2:]
    header = files.headers["train"]["train-00000"]
    assert (header.documents, header.tokens, header.bytes) == (2, 24, 24)
    assert (header.dtype, header.vocab_size) == ("uint16", 257)
    assert {path.suffix for path in shards.iterdir()} == {".bin", ".offsets", ".crc", ".json"}


def test_shards_join_in_the_order_of_their_names(tmp_path):
    path = write_shards(tmp_path, train_00001=[b"b", b"c"], train_00000=[b"a"])
    assert texts_of(TokenFiles(path).documents("train")) == [b"a", b"b", b"c"]


def test_bpe_shards_carry_their_tokenizer(tmp_path):
    bpe = train_bpe([TEXTS[0] * 9], 270)
    files = TokenFiles(write_shards(tmp_path, bpe, train_00000=TEXTS))
    (shard,) = files.documents("train")
    assert files.tokenizer.decode(shard.tokens) == b"".join(TEXTS).decode()
    assert files.headers["train"]["train-00000"].bytes == len(b"".join(TEXTS))


def test_large_vocabularies_take_four_bytes(tmp_path):
    class Wide(ByteTokenizer):
        vocab_size = 70_000

        def __init__(self):
            self.token_bytes = np.ones(self.vocab_size, np.int32)

    with ShardWriter(tmp_path, "train-00000", Wide()) as writer:
        writer.write(np.array([1, 69_999], np.int32))
    assert (tmp_path / "train-00000.bin").stat().st_size == 8
    assert json.loads((tmp_path / "train-00000.json").read_text())["dtype"] == "uint32"


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [("train-00000.bin", 41, 48), ("train-00000.offsets", 17, 24)],
)
def test_a_truncated_file_is_said_with_both_sizes(shards, name, found, expected):
    path = shards / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=f"{name} has {found} bytes where.* {expected};"):
        TokenFiles(shards).documents("train")


def test_a_missing_file_is_said(shards):
    (shards / "train-00000.bin").unlink()
    with pytest.raises(UserError, match="has 0 bytes"):
        TokenFiles(shards).documents("train")


def test_offsets_that_make_no_sense_are_said(shards):
    np.array([0, 30, 24], "<u8").tofile(shards / "train-00000.offsets")
    with pytest.raises(UserError, match="does not lead from 0"):
        TokenFiles(shards).documents("train")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 9}, "version 9.*versions 1 and 2"),
        ({"format": "other"}, "'other'"),
        ({"dtype": "int8"}, "allowed are uint16 and uint32"),
        ({"surprise": 1}, "not a header"),
        ({"vocab_size": 300}, "300 ids.* has 257"),
        ({"tokenizer_sha256": "0"}, "another tokenizer"),
    ],
)
def test_a_wrong_header_is_said(shards, changes, said):
    edit_header(shards, **changes)
    with pytest.raises(UserError, match=said):
        TokenFiles(shards)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "\xff"])
def test_what_is_no_header_is_said(shards, text):
    (shards / "train-00000.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="not a header of token files"):
        TokenFiles(shards)


def test_directories_without_data_are_said(shards, tmp_path):
    with pytest.raises(UserError, match="no directory"):
        TokenFiles(tmp_path / "none")
    with pytest.raises(UserError, match="no directory"):
        TokenFiles("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no token files"):
        TokenFiles(tmp_path / "empty")
    (shards / TOKENIZER_FILE).unlink()
    with pytest.raises(UserError, match=r"tokenizer.*cannot be read"):
        TokenFiles(shards)


def test_an_exception_leaves_nothing_behind(tmp_path):
    def write():
        with ShardWriter(tmp_path, "train-00000", ByteTokenizer()) as writer:
            writer.write(ByteTokenizer().encode("half of the text"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("kind", ["bin", "offsets", "crc", "json"])
def test_no_space_left_is_said_and_leaves_nothing_behind(tmp_path, kind):
    (tmp_path / f"train-00000.{kind}.partial").symlink_to("/dev/full")

    def write():
        with ShardWriter(tmp_path, "train-00000", ByteTokenizer()) as writer:
            writer.write(np.zeros(100_000, np.int32))

    with pytest.raises(UserError, match="No space left on device"):
        write()
    assert not list(tmp_path.iterdir())


LONG = [bytes(range(256)) * 20]  # five blocks of 1,024 tokens


def flip(path, byte):
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1
    path.write_bytes(raw)


def batches(path, **config):
    return make_pipeline(
        {"source": "token_files", "path": str(path), **config},
        batch_size=1,
        sequence_length=1024,
        segment_alignment=1,
        seed=0,
    )


@pytest.mark.parametrize("byte", [0, 2047, 2048, 5000, 10_239])
def test_a_changed_token_is_said_when_it_is_read(tmp_path, byte):
    path = write_shards(tmp_path / "data", train_00000=LONG, eval_00000=TEXTS)
    flip(path / "train-00000.bin", byte)
    pipeline = batches(path)  # sizes and headers are as they were
    iterator, block = pipeline.train_iterator(), byte // 2048 * 1024
    with pytest.raises(UserError, match=rf"train-00000\.bin was changed.* from {block} on fail"):
        [next(iterator) for _ in range(20)]
    with pytest.raises(UserError, match=r"train-00000\.bin was changed .* SHA-256"):
        batches(path, verify=True)
    assert len(list(pipeline.eval_batches())) == 1


def test_tokens_that_are_whole_pass_before_and_after_a_changed_one(tmp_path):
    path = write_shards(tmp_path / "data", train_00000=LONG, eval_00000=TEXTS)
    flip(path / "train-00000.bin", 2048)
    (shard,) = TokenFiles(path).documents("train")
    assert len(shard.read(0, 1024)) == 1024
    assert len(shard.read(2048, 5120)) == 3072
    for start, end in ((1023, 1025), (0, 5120), (1500, 1501)):
        with pytest.raises(UserError, match="from 1024 on"):
            shard.read(start, end)


@pytest.mark.parametrize("kind", ["offsets", "crc"])
def test_changed_offsets_and_checksums_are_said_at_once(shards, kind):
    # The first document's end moves by one, so the offsets still rise.
    flip(shards / f"train-00000.{kind}", 8 if kind == "offsets" else 0)
    with pytest.raises(UserError, match=rf"train-00000\.{kind} was changed .* SHA-256"):
        TokenFiles(shards).documents("train")


def test_the_processes_share_the_reading_of_all_bytes(tmp_path):
    texts = {f"train_0000{i}": [b"text"] for i in range(5)}
    path = write_shards(tmp_path / "data", eval_00000=TEXTS, **texts)
    assert [TokenFiles(path).verify(i, 4) for i in range(4)] == [2, 2, 1, 1]
    flip(path / "train-00003.bin", 0)
    found = []
    for index in range(4):
        try:
            TokenFiles(path).verify(index, 4)
        except UserError as error:
            found.append((index, str(error)))
    assert len(found) == 1
    assert "train-00003.bin" in found[0][1]


def test_shards_of_version_1_can_be_read(shards):
    for name in ("train-00000", "eval-00000"):
        path = shards / f"{name}.json"
        values = json.loads(path.read_text()) | {"version": 1}
        del values["offsets_sha256"], values["crc_sha256"]
        path.write_text(json.dumps(values))
        (shards / f"{name}.crc").unlink()
    files = TokenFiles(shards)
    assert texts_of(files.documents("train")) == TEXTS[:2]
    assert files.verify() == 2


def manifest_of(directory, **changes):
    manifest = Manifest({}, [], "")
    for headers in TokenFiles(directory).headers.values():
        manifest.shards |= {name: shard_facts(header) for name, header in headers.items()}
    manifest.complete = True
    for name, value in changes.items():
        setattr(manifest, name, value)
    manifest.write(directory)


def test_a_manifest_is_held_against_the_shards(shards):
    manifest_of(shards)
    assert Manifest.read(shards).complete
    TokenFiles(shards)
    with ShardWriter(shards, "train-00001", ByteTokenizer()) as writer:
        writer.write(ByteTokenizer().encode("another"))
    with pytest.raises(UserError, match=r"train-00001 of .* is not in its manifest\.json"):
        TokenFiles(shards)
    for path in shards.glob("train-00001.*"):
        path.unlink()
    with ShardWriter(shards, "train-00000", ByteTokenizer()) as writer:
        writer.write(ByteTokenizer().encode("another"))
    with pytest.raises(UserError, match=r"train-00000 of .* is not the one"):
        TokenFiles(shards)
    (shards / "train-00000.json").unlink()
    with pytest.raises(UserError, match=r"train-00000 of .* is not there"):
        TokenFiles(shards)


def test_a_half_written_directory_is_said(shards):
    manifest_of(shards, complete=False)
    with pytest.raises(UserError, match=r"half-written: 2 shards.* it goes on where they end"):
        TokenFiles(shards)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "other", "version": 1}'])
def test_what_is_no_manifest_is_said(shards, text):
    (shards / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="not a manifest of token files"):
        TokenFiles(shards)
