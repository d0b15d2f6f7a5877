"""SentencePiece models, through the `sentencepiece` package (the extra `eval` brings it)."""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from carve_jax.data.tokenizers.checks import LARGEST_FILE, as_text
from carve_jax.data.tokenizers.lossless import bytes_of_piece, lossless_bytes
from carve_jax.errors import UserError
from carve_jax.files import read_regular, reason_of
from carve_jax.shapes import Int32


class SentencePieceTokenizer:
    """A SentencePiece model; a `Tokenizer`.

    Its separator is the model's end of sentence, else its beginning, else an id behind the others.
    Exact byte counts need a model of normalizer "identity", without dummy prefix and with byte
    fallback; others change text on its way through.

    Args:
      model: the serialized model.

    Raises:
      UserError: the package is missing, or these bytes are no model.
    """

    def __init__(self, model: bytes) -> None:
        try:
            import sentencepiece
        except ImportError as error:
            raise UserError(
                "SentencePiece models need the package sentencepiece: pip install -e '.[eval]'"
            ) from error
        try:
            if not model:  # which the package takes for none given, and fails later
                raise RuntimeError("it is empty")
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            pieces = self._processor.get_piece_size()
            if not pieces:
                raise RuntimeError("it holds no pieces")
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"this is no SentencePiece model ({reason_of(error)})") from error
        self._model = model
        ends = (self._processor.eos_id(), self._processor.bos_id(), pieces)
        self.separator = next(end for end in ends if end >= 0)
        self.vocab_size = max(pieces, self.separator + 1)
        self.lossless, self.token_bytes = lossless_bytes(self.encode, self.decode, [self._bytes()])

    @classmethod
    def from_file(cls, path: str | Path) -> "SentencePieceTokenizer":
        """Loads a `.model` file.

        Raises:
          UserError: no such file, or not a model.
        """
        try:
            model = read_regular(Path(path), LARGEST_FILE)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The tokenizer {str(path)!r} cannot be read ({reason_of(error)}): correct the path"
            ) from error
        try:
            return cls(model)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "SentencePieceTokenizer":
        """The tokenizer that `to_json` described.

        Raises:
          UserError: it describes none.
        """
        try:
            model = base64.b64decode(description["model"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise UserError(
                f"The description of a SentencePiece tokenizer lacks its model "
                f"({reason_of(error)}): restore its file"
            ) from error
        return cls(model)

    def encode(self, text: str | bytes) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text.

        Raises:
          UserError: bytes that are not UTF-8.
        """
        return np.asarray(self._processor.encode(as_text(text)), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; separators vanish."""
        return self._processor.decode(
            [int(i) for i in ids if i != self.separator and i < self.vocab_size]
        )

    def to_json(self) -> str:
        """See `tokenizer_from_json`."""
        model = base64.b64encode(self._model).decode()
        return json.dumps({"type": "sentencepiece", "model": model})

    def _bytes(self) -> Int32[np.ndarray, " vocab"]:
        """Bytes each id stands for, were nothing changed."""
        sizes = np.zeros(self.vocab_size, np.int32)
        for index in range(self._processor.get_piece_size()):
            if not (self._processor.is_control(index) or self._processor.is_unknown(index)):
                sizes[index] = bytes_of_piece(self._processor.id_to_piece(index))
        return sizes
