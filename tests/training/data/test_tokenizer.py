import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from carve_jax.errors import UserError
from carve_jax.training.data import ByteTokenizer, LibraryTokenizer, tokenizer_from_json, train_bpe

TEXT = b"A state remembers what keys wrote, erases what they name, decays with time. " * 20


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([TEXT], 300)


@settings(deadline=None)
@given(text=st.text())
def test_both_tokenizers_are_lossless_and_count_bytes_exactly(text, bpe):
    for tokenizer in (ByteTokenizer(), bpe):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
        assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
        assert np.all(ids < tokenizer.vocab_size)
        assert tokenizer.separator not in ids


def test_bytes_are_their_own_ids():
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 257
    assert tokenizer.encode(b"\x00a\xff").tolist() == [0, 97, 255]
    assert tokenizer.encode("é").tolist() == [0xC3, 0xA9]
    assert tokenizer.decode([256, 97, 0xC3, 256, 98]) == "a�b"


def test_bpe_merges_and_its_vocabulary_has_the_size_asked_for(bpe):
    assert bpe.vocab_size == 300
    assert len(bpe.encode(TEXT)) < len(TEXT) / 2
    assert bpe.token_bytes[bpe.separator] == 0
    assert bpe.decode([bpe.separator, *bpe.encode("rule"), bpe.separator]) == "rule"


def test_separator_spelled_in_a_text_is_text(bpe):
    ids = bpe.encode("a<|endoftext|>b")
    assert bpe.separator not in ids
    assert bpe.token_bytes[ids].sum() == len("a<|endoftext|>b")


def test_training_is_deterministic(bpe):
    assert train_bpe([TEXT], 300).to_json() == bpe.to_json()


def test_json_gives_back_an_equal_tokenizer(bpe, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(bpe.to_json(), encoding="utf-8")
    for again in (tokenizer_from_json(bpe.to_json()), LibraryTokenizer.from_file(path)):
        assert isinstance(again, LibraryTokenizer)
        assert again.encode(TEXT).tolist() == bpe.encode(TEXT).tolist()
        assert again.separator == bpe.separator
        np.testing.assert_array_equal(again.token_bytes, bpe.token_bytes)
    assert isinstance(tokenizer_from_json(ByteTokenizer().to_json()), ByteTokenizer)


def test_foreign_bpe_without_separator_gets_one():
    foreign = tokenizers.Tokenizer(tokenizers.models.BPE())
    foreign.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    foreign.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=260, initial_alphabet=alphabet, show_progress=False
    )
    foreign.train_from_iterator([TEXT.decode()], trainer)
    assert foreign.get_vocab_size() == 260
    ours = tokenizer_from_json(foreign.to_str())
    assert (ours.vocab_size, ours.separator) == (261, 260)


def lossy(change) -> str:
    description = json.loads(train_bpe([TEXT], 300).to_json())
    change(description)
    return json.dumps(description)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(normalizer={"type": "NFC"}),
        lambda d: d.update(normalizer={"type": "Lowercase"}),
        lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
        lambda d: d.update(pre_tokenizer={"type": "Whitespace"}),
    ],
)
def test_lossy_tokenizers_count_no_bytes(change):
    tokenizer = tokenizer_from_json(lossy(change))
    assert not tokenizer.lossless
    assert not tokenizer.token_bytes.any()
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size == 300


def test_bad_input_is_said(bpe, tmp_path):
    with pytest.raises(UserError, match="at least 257"):
        train_bpe([TEXT], 256)
    with pytest.raises(UserError, match="not UTF-8"):
        bpe.encode(b"\xff\xfe")
    with pytest.raises(UserError, match=r"cannot be read.*'bytes', 'bpe' or"):
        LibraryTokenizer.from_file(tmp_path / "none.json")
    with pytest.raises(UserError, match="not JSON"):
        tokenizer_from_json("{")
    with pytest.raises(UserError, match="tokenizers library"):
        tokenizer_from_json("{}")
