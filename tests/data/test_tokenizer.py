import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from carve_jax.data import ByteTokenizer, LibraryTokenizer, tokenizer_from_json, train_bpe
from carve_jax.data.tokenizers.files import open_tokenizer
from carve_jax.errors import UserError

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


def spelled(model):
    """A tokenizer that spells spaces as SentencePiece does, with whole characters and bytes."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    parts = [tokenizers.decoders.Replace("\u2581", " ")]
    parts += [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    tokenizer.decoder = tokenizers.decoders.Sequence(parts)
    return tokenizer


PIECES = ["<unk>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "\u2581", "t", "h", "e", "\xe9"]


def test_a_json_that_spells_spaces_and_bytes_counts_exactly():
    vocabulary = {piece: n for n, piece in enumerate(PIECES)}
    model = tokenizers.models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>")
    ours = LibraryTokenizer(spelled(model))
    text = "the caf\xe9 \u6f22"
    assert ours.lossless
    assert ours.decode(ours.encode(text)) == text
    assert ours.token_bytes[ours.encode(text)].sum() == len(text.encode())
    assert ours.separator == 1  # its own end
    assert ours.vocab_size == len(PIECES)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """SentencePiece models: one that changes nothing, and one as they are by default."""
    import sentencepiece

    found = {}
    exact = {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
    }
    for name, options in {"exact": exact, "usual": {}}.items():
        prefix = tmp_path_factory.mktemp("pieces") / name
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([TEXT.decode()] * 3),
            model_prefix=str(prefix),
            vocab_size=300 if name == "exact" else 50,
            hard_vocab_limit=False,
            minloglevel=2,
            **options,
        )
        found[name] = prefix.with_suffix(".model")
    return found


def test_sentencepiece_models(pieces):
    exact = open_tokenizer(str(pieces["exact"]))
    text = "A  state\n remembers \u6f22."
    ids = exact.encode(text)
    assert exact.lossless
    assert exact.decode([exact.separator, *ids, exact.separator]) == text
    assert exact.token_bytes[ids].sum() == len(text.encode())
    assert exact.token_bytes.shape == (exact.vocab_size,)
    assert exact.separator not in ids
    again = tokenizer_from_json(exact.to_json())
    assert again.encode(text).tolist() == ids.tolist()
    usual = open_tokenizer(str(pieces["usual"]))
    assert not usual.lossless
    assert not usual.token_bytes.any()
    assert usual.decode(usual.encode("A state erases")) == "A state erases"


def test_tokenizers_by_name(bpe, pieces, tmp_path, monkeypatch):
    assert isinstance(open_tokenizer("bytes"), ByteTokenizer)
    (tmp_path / "tokenizer.json").write_text(bpe.to_json())
    assert open_tokenizer(str(tmp_path)).vocab_size == 300
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="this is no SentencePiece model"):
        open_tokenizer(str(tmp_path / "bad.model"))
    with pytest.raises(UserError, match=r"none.model' cannot be read"):
        open_tokenizer(str(tmp_path / "none.model"))

    def no_network(name):
        raise Exception(f"no route to {name}")

    monkeypatch.setattr(tokenizers.Tokenizer, "from_pretrained", no_network, raising=False)
    with pytest.raises(UserError, match=r"Hub \(no route to gpt2\): without a network, bring its"):
        open_tokenizer("hf:gpt2")


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
