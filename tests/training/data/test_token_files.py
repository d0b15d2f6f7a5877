import itertools
import json
import os

import numpy as np
import pytest

from carve_jax.errors import UserError
from carve_jax.training.data import ByteTokenizer, ShardWriter, TokenFiles, train_bpe
from carve_jax.training.data.token_files import TOKENIZER_FILE
from tests.training.data.helpers import write_shards

TEXTS = [b"the first document", b"second", b"the third"]


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "data", train_00000=TEXTS[:2], eval_00000=TEXTS[2:])


def edit_header(directory, **changes):
    path = directory / "train-00000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def texts_of(documents):
    return [
        bytes(tokens[start:end].astype(np.uint8))
        for tokens, offsets in documents
        for start, end in itertools.pairwise(offsets)
    ]


def test_what_is_written_is_read(shards):
    files = TokenFiles(shards)
    assert texts_of(files.documents("train")) == TEXTS[:2]
    assert texts_of(files.documents("eval")) == TEXTS[2:]
    assert isinstance(files.documents("train")[0].tokens, np.memmap)
    header = files.headers["train"]["train-00000"]
    assert (header.documents, header.tokens, header.bytes) == (2, 24, 24)
    assert (header.dtype, header.vocab_size) == ("uint16", 257)
    assert {path.suffix for path in shards.iterdir()} == {".bin", ".offsets", ".json"}


def test_shards_join_in_the_order_of_their_names(tmp_path):
    path = write_shards(tmp_path, train_00001=[b"b", b"c"], train_00000=[b"a"])
    assert texts_of(TokenFiles(path).documents("train")) == [b"a", b"b", b"c"]


def test_bpe_shards_carry_their_tokenizer(tmp_path):
    bpe = train_bpe([TEXTS[0] * 9], 270)
    files = TokenFiles(write_shards(tmp_path, bpe, train_00000=TEXTS))
    ((tokens, _),) = files.documents("train")
    assert files.tokenizer.decode(tokens) == b"".join(TEXTS).decode()
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
        ({"version": 9}, "version 9.*version 1"),
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
@pytest.mark.parametrize("kind", ["bin", "offsets", "json"])
def test_no_space_left_is_said_and_leaves_nothing_behind(tmp_path, kind):
    (tmp_path / f"train-00000.{kind}.partial").symlink_to("/dev/full")

    def write():
        with ShardWriter(tmp_path, "train-00000", ByteTokenizer()) as writer:
            writer.write(np.zeros(100_000, np.int32))

    with pytest.raises(UserError, match="No space left on device"):
        write()
    assert not list(tmp_path.iterdir())
