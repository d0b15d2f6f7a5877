import dataclasses
import json
import os
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from carve_jax.decoding import prefill
from carve_jax.decoding_file import load_decoding, save_decoding
from carve_jax.errors import UserError
from carve_jax.generate import decode
from carve_jax.model import LanguageModel, LMConfig
from tests.mixers.parameters import random_parameters

CONFIG = LMConfig(
    vocab_size=50,
    d_model=32,
    layers=3,
    pattern=("carve", "swa", "attention"),
    mlp_dim=48,
    num_heads=2,
    key_dim=8,
    value_dim=16,
    gates={"gate_chunk": 8, "content_rank": 4},
    window=6,
    compute_dtype="bfloat16",
    implementation="recurrent",
)
MODEL = LanguageModel(CONFIG)


@pytest.fixture(scope="module")
def params():
    return random_parameters(MODEL, jnp.zeros((1, 1), jnp.int32))


@pytest.fixture(scope="module")
def read(params):
    return prefill(MODEL, params, [[3, 1, 4], [1, 5, 9]], max_length=9)


@pytest.fixture
def saved(read, params, tmp_path):
    save_decoding(tmp_path / "state", read, CONFIG, params=params)
    return tmp_path / "state"


def test_a_saved_decoding_comes_back_to_the_bit_and_goes_on(saved, read, params):
    back = load_decoding(saved, CONFIG, params=params)
    assert jax.tree.structure(back) == jax.tree.structure(read)
    assert "bfloat16" in {str(leaf.dtype) for leaf in jax.tree.leaves(back)}
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(read), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    copy = jax.tree.map(jnp.copy, read)
    new, _ = decode(MODEL, params, back, max_new_tokens=6)
    np.testing.assert_array_equal(new, decode(MODEL, params, copy, max_new_tokens=6)[0])


def test_how_it_is_computed_may_change(saved):
    other = dataclasses.replace(CONFIG, implementation="chunked", chunk_size=16, remat="full")
    assert load_decoding(saved, other).position.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 51}, "its vocab_size is 50, that of this one 51"),
        (
            {"gates": {"gate_chunk": 16, "content_rank": 4}},
            "its gates.gate_chunk is 8, that of this one 16",
        ),
        ({"pattern": ("gdn2", "swa", "attention")}, "its pattern is .*'carve'.*'gdn2'"),
    ],
)
def test_another_model_is_refused(saved, changes, words):
    with pytest.raises(ValueError, match=words):
        load_decoding(saved, dataclasses.replace(CONFIG, **changes))


def test_other_parameters_are_refused(saved, read, params, tmp_path):
    other = jax.tree.map(lambda leaf: leaf, params)
    other["final_norm"] = {"scale": params["final_norm"]["scale"].at[3].add(1e-6)}
    with pytest.raises(ValueError, match="other parameters of this model"):
        load_decoding(saved, CONFIG, params=other)
    save_decoding(tmp_path / "any", read, CONFIG)
    assert load_decoding(tmp_path / "any", CONFIG, params=other).position.tolist() == [3, 3]


def test_every_damage_is_seen(saved):
    whole = saved.read_bytes()
    for place in (len(whole) // 2, len(whole) - 1, 100):
        broken = bytearray(whole)
        broken[place] ^= 1
        saved.write_bytes(broken)
        with pytest.raises(ValueError, match="is damaged"):
            load_decoding(saved, CONFIG)
    for cut in (whole[:-1], whole[:23], whole + b"0"):
        saved.write_bytes(cut)
        with pytest.raises(ValueError, match="is damaged"):
            load_decoding(saved, CONFIG)
    for other in (b"", b"a text\n" * 9):
        saved.write_bytes(other)
        with pytest.raises(ValueError, match="is no saved decoding"):
            load_decoding(saved, CONFIG)
    saved.write_bytes(whole)
    load_decoding(saved, CONFIG)


def rewritten(path, header: bytes, body=None):
    """The file with another header, and the checksum that makes it whole."""
    first, _, rest = path.read_bytes().split(b"\n", 2)
    content = first + b"\n" + header + b"\n" + (rest[:-4] if body is None else body)
    path.write_bytes(content + zlib.crc32(content).to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (b"", "no JSON"),
        (b"[]", "list indices"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        ({"batch": 10**9}, "its batch is 1000000000"),
        ({"batch": -1}, "its batch is -1"),
        ({"batch": "2"}, "its batch is '2'"),
        ({"max_length": 10**19}, "its max_length"),
        ({"config": []}, r"its config is \[\]"),
        ({"config": None}, "its config is None"),
        ({"arrays": {}}, "its arrays is {}"),
    ],
    ids=str,
)
def test_a_header_made_by_somebody_else_is_told(saved, change, words):
    if isinstance(change, dict):
        values = json.loads(saved.read_bytes().split(b"\n", 2)[1])
        change = json.dumps(values | change).encode()
    rewritten(saved, change)
    with pytest.raises(ValueError, match=f"no saved decoding .*{words}") as caught:
        load_decoding(saved, CONFIG)
    assert len(str(caught.value)) < 400 + len(str(saved))


def test_arrays_of_another_size_than_said_are_told(saved):
    _, header, rest = saved.read_bytes().split(b"\n", 2)
    for body in (rest[:-8], rest[:-4] + b"1", b""):
        rewritten(saved, header, body)
        with pytest.raises(ValueError, match="not of the size that it says"):
            load_decoding(saved, CONFIG)
    values = json.loads(header)
    values["config"]["x" * 1000] = values["config"]["pattern"] = ["y" * 10**6]
    rewritten(saved, json.dumps(values).encode())
    with pytest.raises(ValueError, match="another model") as caught:
        load_decoding(saved, CONFIG)
    assert len(str(caught.value)) < 1000


def test_what_is_no_file_is_told_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero", tmp_path, tmp_path / "absent"):
        with pytest.raises(OSError):  # noqa: PT011  # each system has words of its own
            load_decoding(path, CONFIG)
    for path in ("gs://bucket/state", ""):
        with pytest.raises(UserError, match="the saved decoding="):
            save_decoding(path, read, CONFIG)


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(saved, read, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    before = saved.read_bytes()
    wrong = read._replace(logits=read.logits[:, :-1])
    with pytest.raises(ValueError, match="not one of this configuration's model"):
        save_decoding(saved, wrong, CONFIG)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save_decoding(saved, read, CONFIG)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
