"""Token files and tokenizers that are damaged, odd or huge: the right documents, or one short
sentence; no hang, no death, nothing dropped without a word. One case a kind."""

import base64
import itertools
import json
import os
import resource
import shutil

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from carve_jax.data import ByteTokenizer, TokenFiles, changed_facts, make_pipeline, train_bpe
from carve_jax.data.token_files.manifest import Manifest
from carve_jax.data.token_files.shard import OpenFiles
from carve_jax.data.token_files.shard_header import sha256
from carve_jax.data.tokenizers.files import open_tokenizer
from carve_jax.data.tokenizers.tokenizer import LibraryTokenizer, tokenizer_from_json
from carve_jax.errors import UserError
from carve_jax.training.settings import differences
from experiments.preparation.prepare import Settings, prepare
from tests.data.helpers import write_shards

SHORT = 700  # characters of a sentence, besides paths


# Token files.

TEXTS = [b"the first document", b"second", b"the third"]


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "data", train_00000=[b"x" * 5000, *TEXTS], eval_00000=TEXTS)


def test_a_file_that_is_cut_or_goes_while_it_is_read_is_told(shards):
    (shard,) = TokenFiles(shards).documents("train")
    assert shard.read(0, 5).tobytes() == b"x\0" * 5
    os.truncate(shards / "train-00000.bin", 4096)  # of a mapping, the next read would be the end
    assert shard.read(0, 5).tobytes() == b"x\0" * 5
    with pytest.raises(UserError, match="has become shorter"):
        shard.read(4000, 5000)
    (shard,) = TokenFiles(shards).documents("eval")
    (shards / "eval-00000.bin").unlink()
    with pytest.raises(UserError, match="No such file"):
        shard.read(0, 5)


def test_there_may_be_more_shards_than_a_process_may_open(tmp_path):
    files = []
    for number in range(9):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(bytes([number] * 3))
    opened = OpenFiles(most=3)
    before = len(os.listdir("/dev/fd"))
    for path in files * 2:
        assert opened.read(path, 5, 1) == path.read_bytes()[1:]
    assert len(os.listdir("/dev/fd")) == before + 3
    for path in files:
        opened.forget(path)
    assert len(os.listdir("/dev/fd")) == before


def test_no_descriptor_left_is_one_sentence(shards):
    (shard,) = TokenFiles(shards).documents("train")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(UserError, match="Too many open files"):
            shard.read(0, 5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "change",
    [
        {"settings": []},
        {"shards": {"../x": {}}},
        {"position": [0]},
        {"position": [0, -1]},
        {"position": 7},
        {"done_bytes": "1"},
        {"complete": 1},
        {"complete": False},
        {"inexact": 1},
        {"version": 9},
        {"surprise": 1},
        {"tokenizer_sha256": "0"},
    ],
    ids=str,
)
def test_a_manifest_of_somebody_else_is_told(tmp_path, change):
    Manifest({"a": 1}, [], "", {}, (2, 1), 9, complete=True).write(tmp_path)
    assert Manifest.read(tmp_path).position == (2, 1)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


def test_manifests_of_before_are_read(tmp_path):
    values = {"settings": {}, "sources": [], "tokenizer_sha256": "", "shards": {}}
    values |= {"position": [1, 0], "done_bytes": 3, "complete": True}
    values |= {"format": "carve_jax manifest", "version": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    assert Manifest.read(tmp_path).complete


@pytest.mark.parametrize("change", [{"tokens": "24"}, {"documents": -1}, {"sha256": None}], ids=str)
def test_a_header_of_other_kinds_is_told(shards, change):
    path = shards / "train-00000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="not a header of token files"):
        TokenFiles(shards)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_damage_to_token_files_is_seen_or_does_no_harm(tmp_path_factory, data):
    """Every document as it was, or a sentence; bytes are flipped, cut off and put in."""
    path = tmp_path_factory.mktemp("fuzz")
    lines = [json.dumps({"text": f"text {i}"}) for i in range(8)]
    (path / "x.jsonl").write_text("\n".join(lines))
    prepare([str(path / "x.jsonl")], path / "out", Settings(eval_fraction=0.4))
    whole = read_all(path / "out")
    names = sorted(p.name for p in (path / "out").iterdir())
    victim = path / "out" / data.draw(st.sampled_from(names))
    raw = bytearray(victim.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    if kind == "flip":
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del raw[at:]
    else:
        raw[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    victim.write_bytes(raw)
    try:
        found = read_all(path / "out")
    except UserError as error:
        assert len(str(error)) < SHORT + 3 * len(str(path))  # noqa: PT017  # either may come
    else:
        assert found == whole


def test_where_token_files_lie_does_not_matter_and_what_they_hold_does(shards, tmp_path):
    other = write_shards(tmp_path / "other", train_00000=[b"y" * 9], eval_00000=TEXTS)
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)

    def facts(source, *paths):
        config = {"source": source, "verify": True, "path": str(paths[0])}
        if source == "mixture":
            config |= {"paths": [str(p) for p in paths], "weights": [1.0, 2.0]}
        shape = {"batch_size": 1, "sequence_length": 64, "segment_alignment": 64, "seed": 0}
        described = make_pipeline(config, **shape).describe()
        return json.loads(json.dumps(described))  # as a checkpoint keeps them

    alone = facts("token_files", shards)
    assert changed_facts(alone, facts("token_files", f"{moved}/")) == []
    assert "train_sha256" in changed_facts(alone, facts("token_files", other))
    mixed = facts("mixture", shards, other)
    assert changed_facts(mixed, facts("mixture", moved, other)) == []
    assert changed_facts(mixed, facts("mixture", other, moved)) == ["mixture"]
    ruler = {"source": "ruler", "path": "a"}
    assert changed_facts(ruler, {**ruler, "path": "b"}) == ["path"]

    flat = {"data.source": "token_files", "data.path": "a", "data.verify": False}
    assert differences(flat, {**flat, "data.path": "b", "data.verify": True}) == []
    assert differences(flat, {**flat, "data.path": "b"}, but=frozenset())
    ruler = {"data.source": "ruler", "data.path": "a"}
    assert differences(ruler, {**ruler, "data.path": "b"})
    assert differences(flat, {**flat, "data.source": "mixture"})


def read_all(directory):
    files = TokenFiles(directory)
    return [
        files.tokenizer.decode(shard.read(start, end))
        for split in ("train", "eval")
        for shard in files.documents(split)
        for start, end in itertools.pairwise(shard.offsets.tolist())
    ]


# Tokenizers.


def without_unknown(kind):
    if kind == "WordLevel":
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        return made
    return tokenizers.Tokenizer(tokenizers.models.Unigram([("a", -1.0)], None))


@pytest.mark.parametrize("kind", ["WordLevel", "Unigram"])
def test_a_tokenizer_without_unknown_token_is_told_where_it_needs_one(tmp_path, kind):
    (tmp_path / "tokenizer.json").write_text(without_unknown(kind).to_str())
    ours = open_tokenizer(str(tmp_path))
    assert not ours.lossless
    assert ours.encode("a").tolist() == [0]
    with pytest.raises(UserError, match="cannot encode a text, perhaps for want of an unknown"):
        ours.encode("zebra")


def byte_level(alphabet, **parts):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    for name, part in parts.items():
        setattr(made, name, part)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["plain words of the corpus"] * 9, trainer)
    return made


EVERYTHING = tokenizers.pre_tokenizers.ByteLevel.alphabet()


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": tokenizers.normalizers.Replace("\r\n", "\n")},
        {"normalizer": tokenizers.normalizers.Replace("colour", "color")},  # no probe has it
        {
            "pre_tokenizer": tokenizers.pre_tokenizers.Sequence(
                [
                    tokenizers.pre_tokenizers.Split("zq", "removed"),
                    tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
        },
    ],
    ids=["line ends", "by pattern", "removed"],
)
def test_parts_that_change_text_make_no_lossless_tokenizer(parts):
    assert LibraryTokenizer(byte_level(EVERYTHING)).lossless
    assert not LibraryTokenizer(byte_level(EVERYTHING, **parts)).lossless


def test_alphabets_and_added_tokens_that_drop_text_make_no_lossless_tokenizer():
    lacking = [letter for letter in EVERYTHING if letter != "\u0100"]  # how byte 0 is spelled
    assert not LibraryTokenizer(byte_level(lacking)).lossless
    for options in ({"lstrip": True}, {"rstrip": True}):
        made = byte_level(EVERYTHING)
        made.add_tokens([tokenizers.AddedToken("tail", **options)])
        assert not LibraryTokenizer(made).lossless
    made = byte_level(EVERYTHING)
    made.add_tokens([tokenizers.AddedToken("tail")])
    assert LibraryTokenizer(made).lossless


def test_documents_that_are_not_given_back_decide(tmp_path, monkeypatch, capsys):
    """A tokenizer that passes for lossless, and a text that it shortens after all."""
    made = byte_level(EVERYTHING, normalizer=tokenizers.normalizers.Replace("zqx", ""))
    monkeypatch.setattr("carve_jax.data.tokenizers.tokenizer.keeps_text", lambda description: True)
    (tmp_path / "tokenizer.json").write_text(made.to_str())
    texts = [f"text {i}" for i in range(20)]
    texts += ["a zqx b", "zqx"]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    named = Settings(str(tmp_path / "tokenizer.json"), eval_fraction=0.3)
    files = prepare([str(tmp_path / "x.jsonl")], tmp_path / "out", named)
    assert not files.tokenizer.lossless
    assert not files.tokenizer.token_bytes.any()
    said = capsys.readouterr().out
    assert "1 documents were left out: the tokenizer makes no tokens of their text" in said
    assert "1 documents are not given back to the byte" in said


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "sentencepiece"}',
        '{"type": "sentencepiece", "model": ""}',
        '{"type": "sentencepiece", "model": 3}',
        '{"type": "sentencepiece", "model": "%%%"}',
        json.dumps({"type": "sentencepiece", "model": base64.b64encode(b"no model").decode()}),
        "[" * 100_000,
        '{"x": ' + "1" * 5000 + "}",
        '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 4000000000}, '
        '"unk_token": "a"}}',
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
    ],
    ids=range(9),
)
def test_descriptions_of_no_tokenizer_are_one_short_sentence(text):
    with pytest.raises(UserError) as caught:
        tokenizer_from_json(text)
    assert len(str(caught.value)) < SHORT


def test_tokenizer_files_that_are_none_are_told_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    os.mkfifo(tmp_path / "pipe.model")
    (tmp_path / "empty.model").write_bytes(b"")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    for name, said in [
        ("pipe.json", "no regular file"),
        ("pipe.model", "no regular file"),
        ("empty.model", "it is empty"),
        ("latin.json", "not UTF-8"),
        ("a" * 300, "name too long"),
        ("gs://bucket/tokenizer.json", "not supported"),
    ]:
        with pytest.raises(UserError, match=f"(?i){said}"):
            open_tokenizer(name if ":" in name else str(tmp_path / name))


def test_text_that_no_file_can_hold_is_told():
    for tokenizer in (ByteTokenizer(), train_bpe([b"a b c"], 257)):
        with pytest.raises(UserError, match="half of a surrogate pair"):
            tokenizer.encode("a \ud83d")
    assert sha256("") == sha256(b"")
