"""Whether a tokenizer gives every text back, and how many bytes each of its ids then stands for.

Two things decide when a tokenizer is opened: texts that hold what tokenizers are known to change,
and, of the `tokenizers` library, whether it has parts that change or drop text by pattern, which no
probe finds. Where documents are encoded, their bytes decide (see `lossy`).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from carve_jax.shapes import Int32

Sizes = Int32[np.ndarray, " vocab"]

# Starts without a space; holds runs of spaces, line ends, a control character, characters of one to
# four bytes, a ligature, a decomposed letter and capitals: what normalizers change.
PROBE = "An  A\u030a\n\n\t\xe9\x00 \u6f22\u5b57\U0001f642 don't 12,345 <|endoftext|> \ufb01\n"
# Every byte that UTF-8 has: an alphabet of some corpus lacks some, and drops them in silence.
EVERY_BYTE = "".join(
    map(
        chr,
        (*range(0x800), *range(0x800, 0xD800, 0x3F7), *range(0xE000, 0x110000, 0xFFEF)),
    )
)
PROBES = (PROBE, EVERY_BYTE, " a\r\nb\rc\r\n\r\n", "\ufeffx \u200b\xa0\u3000 y ")

# Parts of the `tokenizers` library that leave all of a text in its pieces.
KEEPS_TEXT = ("ByteLevel", "Digits", "UnicodeScripts", "Metaspace", "FixedLength")
CUTS = ("Split", "Punctuation")  # they do unless they remove what they cut at


class Counted(Protocol):
    """A tokenizer that knows how many bytes its ids stand for."""

    lossless: bool
    token_bytes: Sizes


def lossless_bytes(
    encode: Callable[[str], Int32[np.ndarray, " tokens"]],
    decode: Callable[[Iterable[int]], str],
    candidates: Iterable[Sizes],
    probes: Sequence[str] = PROBES,
) -> tuple[bool, Sizes]:
    """Whether texts are given back, and the first of the candidates that counts their bytes.

    Where there is none, it is counted as not lossless, and the sizes are 0.
    """
    encoded = [encode(text) for text in probes]
    same = all(decode(ids) == text for ids, text in zip(encoded, probes, strict=True))
    sizes = np.zeros(0, np.int32)
    for sizes in candidates:
        counts = same and all(
            sizes[ids].sum() == len(text.encode())
            for ids, text in zip(encoded, probes, strict=True)
        )
        if counts:
            return True, sizes
    return False, np.zeros_like(sizes)


def lossy(tokenizer: Counted) -> None:
    """Notes that a document was not given back to the byte: the ids stand for no bytes then."""
    tokenizer.lossless = False
    tokenizer.token_bytes = np.zeros_like(tokenizer.token_bytes)


def keeps_text(description: Mapping[str, Any]) -> bool:
    """Whether a JSON of the `tokenizers` library has no part that changes or drops text."""
    return _normalizes_nothing(description.get("normalizer")) and _drops_nothing(
        description.get("pre_tokenizer")
    )


def added_probes(contents: Iterable[str]) -> list[str]:
    """Texts that hold added tokens: some eat the spaces around them, or need to stand alone."""
    return ["".join(f"a {one} b{one}c\t{one}\n" for one in contents)]


def bytes_of_piece(spelled: str) -> int:
    """Bytes of a piece as SentencePiece spells it: \u2581 is a space, <0xE9> a byte."""
    if re.fullmatch("<0x[0-9A-F]{2}>", spelled):
        return 1
    return len(spelled.replace("\u2581", " ").encode())


def _normalizes_nothing(part: Any) -> bool:
    """Nothing, or spaces spelled as \u2581."""
    if part is None:
        return True
    if part.get("type") == "Sequence":
        return all(map(_normalizes_nothing, part["normalizers"]))
    spaces = part.get("type") == "Replace" and part.get("pattern") == {"String": " "}
    return spaces and part.get("content") == "\u2581"


def _drops_nothing(part: Any) -> bool:
    if part is None:
        return True
    kind = part.get("type")
    if kind == "Sequence":
        return all(map(_drops_nothing, part["pretokenizers"]))
    return kind in KEEPS_TEXT or (kind in CUTS and part.get("behavior") != "Removed")
