"""Tokenizers: bytes, or a byte-level BPE trained here or loaded from a tokenizer JSON.

Both are lossless: `token_bytes` counts exactly the bytes each id stands for, so a loss in nats a
token converts exactly to bits a byte.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers

from carve_jax.errors import UserError
from carve_jax.shapes import Int32

SEPARATOR = "<|endoftext|>"
# Starts without a space; holds runs of spaces, line ends, a control character, characters of one to
# four bytes, a ligature, a decomposed letter and capitals: what normalizers change.
_PROBE = "An  A\u030a\n\n\t\xe9\x00 \u6f22\u5b57\U0001f642 don't 12,345 <|endoftext|> \ufb01\n"


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
      vocab_size: number of ids, the separator included.
      separator: the id that starts each piece of a document; stands for no bytes.
      token_bytes: bytes each id stands for.
    """

    vocab_size: int
    separator: int
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

    def __init__(self) -> None:
        self.token_bytes = np.ones(257, np.int32)
        self.token_bytes[self.separator] = 0

    def encode(self, text: str | bytes) -> Int32[np.ndarray, " tokens"]:
        """The bytes of a text."""
        raw = text.encode() if isinstance(text, str) else text
        return np.frombuffer(raw, np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; separators vanish and broken UTF-8 becomes U+FFFD."""
        return bytes(int(i) for i in ids if 0 <= i < 256).decode(errors="replace")

    def to_json(self) -> str:
        """See `tokenizer_from_json`."""
        return json.dumps({"type": "bytes"})


class BPETokenizer:
    """A byte-level BPE of the `tokenizers` library.

    Args:
      tokenizer: its separator is the special token `<|endoftext|>`, which is appended to the
        vocabulary where there is none.

    Raises:
      UserError: the tokenizer is not a lossless byte-level BPE.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.add_special_tokens([SEPARATOR])
        separator = tokenizer.token_to_id(SEPARATOR)
        assert separator is not None  # it was just added
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # the separator's spelling in a text is plain text
        self._tokenizer = tokenizer
        self.separator = separator
        self.token_bytes = _token_bytes(tokenizer)
        self.vocab_size = len(self.token_bytes)
        probe = self.encode(_PROBE)
        lossless = self.decode(probe) == _PROBE
        if not lossless or self.token_bytes[probe].sum() != len(_PROBE.encode()):
            raise UserError(
                "The tokenizer changes text on its way through; bits per byte need a byte-level "
                "BPE without normalizer and without added prefix space."
            )

    @classmethod
    def from_file(cls, path: str | Path) -> "BPETokenizer":
        """Loads a tokenizer JSON.

        Raises:
          UserError: no such file, not a tokenizer JSON, or not a lossless byte-level BPE.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"The tokenizer {str(path)!r} cannot be read ({error}); give 'bytes', 'bpe' or "
                "the path of a tokenizer.json."
            ) from error
        return cls.from_json(text)

    @classmethod
    def from_json(cls, text: str) -> "BPETokenizer":
        """Builds the tokenizer from the text of a tokenizer JSON.

        Raises:
          UserError: not a tokenizer JSON, or not a lossless byte-level BPE.
        """
        try:
            parsed = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                f"The text is not a JSON of the tokenizers library ({error})."
            ) from error
        return cls(parsed)

    def encode(self, text: str | bytes) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text.

        Raises:
          UserError: bytes that are not UTF-8.
        """
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"A text is not UTF-8 ({error}); convert it, or use the tokenizer 'bytes'."
                ) from error
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; separators vanish and broken UTF-8 becomes U+FFFD."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def to_json(self) -> str:
        """The tokenizer JSON of the `tokenizers` library."""
        return self._tokenizer.to_str()


def _token_bytes(tokenizer: tokenizers.Tokenizer) -> Int32[np.ndarray, " vocab"]:
    """Bytes each id stands for: byte-level BPE spells each byte as one character."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added: dict[int, Any] = tokenizer.get_added_tokens_decoder()
    sizes = np.zeros(max(vocabulary.values()) + 1, np.int32)
    for spelled, index in vocabulary.items():
        if index not in added:
            sizes[index] = len(spelled)
        elif not added[index].special:
            sizes[index] = len(spelled.encode())
    return sizes


def train_bpe(texts: Iterable[bytes], vocab_size: int) -> BPETokenizer:
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
    return BPETokenizer(tokenizer)


def tokenizer_from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` described.

    Raises:
      UserError: the text describes no tokenizer.
    """
    try:
        is_bytes = json.loads(text) == {"type": "bytes"}
    except json.JSONDecodeError as error:
        raise UserError(f"The tokenizer's description is not JSON ({error}).") from error
    return ByteTokenizer() if is_bytes else BPETokenizer.from_json(text)
