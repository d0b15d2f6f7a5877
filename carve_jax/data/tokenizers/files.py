"""Tokenizers by name: a word, a path, or a name on the Hugging Face Hub."""

import tokenizers

from carve_jax.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from carve_jax.data.tokenizers.tokenizer import ByteTokenizer, LibraryTokenizer, Tokenizer
from carve_jax.errors import UserError
from carve_jax.files import local_path, reason_of, told

HUB = "hf:"
FILES = ("tokenizer.json", "tokenizer.model")


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a name.

    Args:
      name: "bytes"; the path of a JSON of the `tokenizers` library, of a SentencePiece `.model`, or
        of a directory that holds `tokenizer.json` or `tokenizer.model`; or "hf:NAME" for the one of
        a model on the Hugging Face Hub, where there is a network.

    Raises:
      UserError: it cannot be had; the sentence says why.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name.startswith(HUB):
        return _from_hub(name.removeprefix(HUB))
    path = local_path(name, "tokenizer")
    with told(f"The tokenizer {str(path)!r}", "give 'bytes', 'bpe' or the path of its file"):
        if path.is_dir():
            path = next((path / file for file in FILES if (path / file).is_file()), path / FILES[0])
    if path.suffix == ".model":
        return SentencePieceTokenizer.from_file(path)
    return LibraryTokenizer.from_file(path)


def _from_hub(name: str) -> Tokenizer:
    try:
        return LibraryTokenizer(tokenizers.Tokenizer.from_pretrained(name))
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"the tokenizer of {name!r} could not be had from the Hugging Face Hub "
            f"({reason_of(error)}): "
            "without a network, bring its tokenizer.json (or tokenizer.model) and give the path"
        ) from error
