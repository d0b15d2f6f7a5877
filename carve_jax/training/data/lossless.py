"""Whether a tokenizer gives every text back, and how many bytes each of its ids then stands for."""

import re
from collections.abc import Callable, Iterable

import numpy as np

from carve_jax.shapes import Int32

# Starts without a space; holds runs of spaces, line ends, a control character, characters of one to
# four bytes, a ligature, a decomposed letter and capitals: what normalizers change.
PROBE = "An  A\u030a\n\n\t\xe9\x00 \u6f22\u5b57\U0001f642 don't 12,345 <|endoftext|> \ufb01\n"
Sizes = Int32[np.ndarray, " vocab"]


def lossless_bytes(
    encode: Callable[[str], Int32[np.ndarray, " tokens"]],
    decode: Callable[[Iterable[int]], str],
    candidates: Iterable[Sizes],
) -> tuple[bool, Sizes]:
    """Whether a text is given back, and the first of the candidates that counts its bytes exactly.

    Where there is none, it is counted as not lossless, and the sizes are 0.
    """
    ids = encode(PROBE)
    same = decode(ids) == PROBE
    sizes = np.zeros(0, np.int32)
    for sizes in candidates:
        if same and sizes[ids].sum() == len(PROBE.encode()):
            return True, sizes
    return False, np.zeros_like(sizes)


def bytes_of_piece(spelled: str) -> int:
    """Bytes of a piece as SentencePiece spells it: \u2581 is a space, <0xE9> a byte."""
    if re.fullmatch("<0x[0-9A-F]{2}>", spelled):
        return 1
    return len(spelled.replace("\u2581", " ").encode())
