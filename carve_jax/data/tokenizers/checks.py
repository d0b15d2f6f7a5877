"""What tokenizers are held to, whoever made them, and how their libraries' failures are told."""

import contextlib
from collections.abc import Iterator

from carve_jax.errors import UserError
from carve_jax.files import reason_of

LARGEST_FILE = 512 << 20  # bytes of a tokenizer's file
LARGEST_VOCABULARY = 1 << 24  # ids; tables of that size are made


def as_text(text: str | bytes) -> str:
    """The text of UTF-8.

    Raises:
      UserError: bytes that are not UTF-8, or half of a surrogate pair.
    """
    try:
        if isinstance(text, bytes):
            return text.decode("utf-8")
        text.encode("utf-8")
    except UnicodeError as error:
        raise UserError(
            f"A text is not UTF-8 ({reason_of(error)}); convert it, or use the tokenizer 'bytes'."
        ) from error
    return text


@contextlib.contextmanager
def library(failed: str) -> Iterator[None]:
    """Makes what the tokenizers library raises a UserError: bare Exceptions, and its panics."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of its Rust is no Exception
        raise UserError(
            f"{failed} ({reason_of(error)}); use another tokenizer, or 'bytes'."
        ) from error
