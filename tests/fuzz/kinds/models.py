"""Tokenizers and weights of others, and saved decodings."""

import io
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece

from carve_jax.data import train_bpe
from carve_jax.data.tokenizers.files import open_tokenizer
from carve_jax.decoding import Decoding
from carve_jax.decoding_file import CRC_BYTES, save_decoding
from carve_jax.interop import from_torch, save_safetensors
from carve_jax.mixers import MIXERS
from carve_jax.model import LanguageModel, LMConfig
from experiments.generating import state
from tests.fuzz.kind import Kind, Say, any_value
from tests.fuzz.kinds.run_directory import TEXT, judge_tokenizer

CONFIG = LMConfig(
    vocab_size=12,
    d_model=8,
    layers=2,
    pattern=("carve", "swa"),
    mlp_dim=8,
    num_heads=1,
    key_dim=4,
    value_dim=4,
    gates={"gate_chunk": 4, "content_rank": 2},
    window=3,
    compute_dtype="float32",
)
MIXER = MIXERS["gdn2"](num_heads=1, key_dim=4, value_dim=4, gate_activation="sigmoid")
WIDTH = 8


def make_bpe(folder: Path, number: int) -> None:
    text = train_bpe([TEXT.encode() * 9], 270 + number).to_json()
    (folder / "tokenizer.json").write_text(text, "utf-8")


def _open(name: str) -> Any:
    def read(folder: Path, say: Say) -> Any:
        """As --tokenizer takes it."""
        tokenizer = open_tokenizer(str(folder / name))
        ids = tokenizer.encode(TEXT)
        return ids, tokenizer.token_bytes, tokenizer.lossless, tokenizer.decode(ids)

    return read


def make_sentencepiece(folder: Path, number: int) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the rule is the rule", "a state of a rule", TEXT] * 9),
        model_writer=model,
        vocab_size=290 + number,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def make_decoding(folder: Path, number: int) -> None:
    cache = LanguageModel(CONFIG).init_cache(2, 6)
    cache = jax.tree.map(lambda leaf: leaf + number + 1, cache)
    logits = jnp.zeros((2, CONFIG.vocab_size), jnp.float32) + number
    save_decoding(folder / "state", Decoding(cache, logits, jnp.full((2,), 3, jnp.int32)), CONFIG)


def read_decoding(folder: Path, say: Say) -> Any:
    """As --load_state takes it."""
    trained = SimpleNamespace(model=LanguageModel(CONFIG), params=None)
    return jax.tree.leaves(state.load(str(folder / "state"), trained))


def reseal_decoding(folder: Path) -> None:
    content = (folder / "state").read_bytes()[:-CRC_BYTES]
    (folder / "state").write_bytes(content + zlib.crc32(content).to_bytes(CRC_BYTES, "big"))


def make_weights(folder: Path, number: int) -> None:
    x = jnp.zeros((1, 1, WIDTH), jnp.float32)
    shapes = jax.eval_shape(lambda: MIXER.init(jax.random.key(0), x))["params"]
    params = jax.tree.map(lambda s: np.full(s.shape, 0.5 + number, s.dtype), shapes)
    save_safetensors(folder / "model.safetensors", params, MIXER)


def read_weights(folder: Path, say: Say) -> Any:
    return jax.device_get(from_torch(folder / "model.safetensors", MIXER))


KINDS = (
    Kind(
        "tokenizer of others, JSON",
        make_bpe,
        ("tokenizer.json",),
        _open("tokenizer.json"),
        ("carve_jax.data.tokenizers.tokenizer:LibraryTokenizer.from_file",),
        judge_tokenizer,
        json=True,
    ),
    Kind(
        "tokenizer of others, a folder",
        make_bpe,
        ("tokenizer.json",),
        _open("."),
        ("carve_jax.data.tokenizers.files:open_tokenizer",),
        judge_tokenizer,
        share=0.3,
    ),
    Kind(
        "SentencePiece model",
        make_sentencepiece,
        ("tokenizer.model",),
        _open("tokenizer.model"),
        (
            "carve_jax.data.tokenizers.sentencepiece_tokenizer:SentencePieceTokenizer.from_file",
            "carve_jax.data.tokenizers.sentencepiece_tokenizer:SentencePieceTokenizer.__init__",
        ),
        judge_tokenizer,
    ),
    Kind(
        "saved decoding",
        make_decoding,
        ("state",),
        read_decoding,
        (
            "carve_jax.decoding_file:load_decoding",
            "carve_jax.decoding_file:_read_header",
        ),
        reseal=reseal_decoding,
        alone=True,  # of the same model
    ),
    Kind(
        "weights in safetensors",
        make_weights,
        ("model.safetensors",),
        read_weights,
        ("carve_jax.interop.weights:_of_file",),
        any_value,  # the format has no checksum
    ),
)
