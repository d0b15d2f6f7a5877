"""Tokenizers: bytes, a byte-level BPE trained here, or any of the `tokenizers` library.

Where a tokenizer is lossless, `token_bytes` counts exactly the bytes each id stands for, so a loss
in nats per token converts exactly to bits per byte. Others change text on its way through: their
`token_bytes` are 0, and what is measured with them has no bits per byte.
"""

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers

from carve_jax.data.tokenizers.checks import (
    LARGEST_FILE,
    LARGEST_VOCABULARY,
    as_text,
    library,
)
from carve_jax.data.tokenizers.lossless import (
    PROBES,
    added_probes,
    bytes_of_piece,
    keeps_text,
    lossless_bytes,
)
from carve_jax.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from carve_jax.errors import UserError
from carve_jax.files import parse_json, read_text, reason_of
from carve_jax.shapes import Int32

SEPARATOR = "<|endoftext|>"
# What other tokenizers end a document with.
ENDS = (SEPARATOR, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]", "<s>")


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
      vocab_size: number of ids, the separator included.
      separator: the id that starts each piece of a document; stands for no bytes.
      lossless: whether decoding gives back every text, byte for byte, for all that is known.
      token_bytes: bytes each id stands for; all 0 where it is not lossless.
    """

    vocab_size: int
    separator: int
    lossless: bool
    token_bytes: Int32[np.ndarray, " vocab"]

    def encode(self, text: str | bytes) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text, without a separator."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; separators vanish and broken UTF-8 becomes U+FFFD."""
        ...

    def to_json(self) -> str:
        """A description from which `tokenizer_from_json` builds an equal tokenizer."""
        ...


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 is the separator."""

    vocab_size = 257
    separator = 256
    lossless = True

    def __init__(self) -> None:
        self.token_bytes = np.ones(257, np.int32)
        self.token_bytes[self.separator] = 0

    def encode(self, text: str | bytes) -> Int32[np.ndarray, " tokens"]:
        """The bytes of a text; UserError where it holds half of a surrogate pair."""
        raw = as_text(text).encode() if isinstance(text, str) else text
        return np.frombuffer(raw, np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; separators vanish and broken UTF-8 becomes U+FFFD."""
        return bytes(int(i) for i in ids if 0 <= i < 256).decode(errors="replace")

    def to_json(self) -> str:
        """See `tokenizer_from_json`."""
        return json.dumps({"type": "bytes"})


class LibraryTokenizer:
    """A tokenizer of the `tokenizers` library: byte-level BPE and any other.

    Args:
      tokenizer: its separator is the first of `ENDS` that it has; where it has none,
        `<|endoftext|>` is appended to the vocabulary.

    Raises:
      UserError: its ids are too large.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        if max(vocabulary.values(), default=0) >= LARGEST_VOCABULARY:
            raise UserError(
                f"The tokenizer has the id {max(vocabulary.values()):,}; ids below "
                f"{LARGEST_VOCABULARY:,} are allowed: number its vocabulary from 0."
            )
        separator = next((end for end in ENDS if tokenizer.token_to_id(end) is not None), SEPARATOR)
        tokenizer.add_special_tokens([separator])
        number = tokenizer.token_to_id(separator)
        assert number is not None  # it was just added
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # the separator's spelling in a text is plain text
        self._tokenizer = tokenizer
        self.separator = number
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.lossless, self.token_bytes = False, np.zeros(self.vocab_size, np.int32)
        # Of two pieces with one id, decoding gives one back for both.
        unique = len(set(vocabulary.values())) == len(vocabulary)
        if unique and keeps_text(json.loads(tokenizer.to_str())):
            added = (token.content for token in tokenizer.get_added_tokens_decoder().values())
            candidates = (_token_bytes(tokenizer, size) for size in (len, bytes_of_piece))
            probes = [*PROBES, *added_probes(added)]
            with contextlib.suppress(UserError):  # what it cannot encode, it does not give back
                self.lossless, self.token_bytes = lossless_bytes(
                    self.encode, self.decode, candidates, probes
                )

    @classmethod
    def from_file(cls, path: str | Path) -> "LibraryTokenizer":
        """Loads a tokenizer JSON.

        Raises:
          UserError: no such file, or not a tokenizer JSON.
        """
        try:
            text = read_text(Path(path), LARGEST_FILE)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The tokenizer {str(path)!r} cannot be read ({reason_of(error)}); give 'bytes', "
                "'bpe' or the path of a tokenizer's file."
            ) from error
        return cls.from_json(text)

    @classmethod
    def from_json(cls, text: str) -> "LibraryTokenizer":
        """Builds the tokenizer from the text of a tokenizer JSON.

        Raises:
          UserError: not a tokenizer JSON.
        """
        with library("The text is not a JSON of the tokenizers library"):
            parsed = tokenizers.Tokenizer.from_str(text)
        return cls(parsed)

    def encode(self, text: str | bytes) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text.

        Raises:
          UserError: bytes that are not UTF-8, or a text that it has no tokens for.
        """
        text = as_text(text)
        with library("The tokenizer cannot encode a text, perhaps for want of an unknown token"):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; separators vanish and broken UTF-8 becomes U+FFFD."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def to_json(self) -> str:
        """The tokenizer JSON of the `tokenizers` library."""
        return self._tokenizer.to_str()


def _token_bytes(
    tokenizer: tokenizers.Tokenizer, size: Callable[[str], int]
) -> Int32[np.ndarray, " vocab"]:
    """Bytes each id stands for; byte-level BPE spells each byte as one character (`len`)."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added: dict[int, Any] = tokenizer.get_added_tokens_decoder()
    sizes = np.zeros(max(vocabulary.values()) + 1, np.int32)
    for spelled, index in vocabulary.items():
        if index not in added:
            sizes[index] = size(spelled)
        elif not added[index].special:
            sizes[index] = len(spelled.encode())
    return sizes


def train_bpe(texts: Iterable[bytes], vocab_size: int) -> LibraryTokenizer:
    """Trains a byte-level BPE.

    Args:
      texts: UTF-8 texts.
      vocab_size: ids wanted: 256 bytes, the separator, and the merges. A small corpus may yield
        fewer.

    Raises:
      UserError: `vocab_size` is below 257.
    """
    if vocab_size < 257:
        raise UserError(
            f"A byte-level BPE of {vocab_size} ids was asked for; data.vocab_size must be at "
            "least 257 (256 bytes and the separator)."
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.decode(errors="replace") for text in texts), trainer)
    return LibraryTokenizer(tokenizer)


def tokenizer_from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` described.

    Raises:
      UserError: the text describes no tokenizer.
    """
    try:
        described = parse_json(text, repeats=True)  # as its library reads it
    except ValueError as error:
        raise UserError(
            f"The tokenizer's description is not JSON ({reason_of(error)}): restore its file."
        ) from error
    kind = described.get("type") if isinstance(described, dict) else None
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "sentencepiece":
        return SentencePieceTokenizer.from_description(described)
    return LibraryTokenizer.from_json(text)
