"""Documents, and the rule that holds some of them out whole."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

PART = "\x1f#"
"""What stands between the name of a document and the number of its part, where it was cut."""


class Document(NamedTuple):
    """A text with a name that does not change from run to run."""

    name: str
    text: bytes


def is_held_out(name: str, eval_fraction: float) -> bool:
    """Whether the document of this name is held out.

    A hash of the name alone decides: adding documents, another seed or another machine moves no
    document across the line, and a larger fraction only ever adds to the held-out set. The parts of
    a document go where it goes.
    """
    digest = hashlib.sha256(name.partition(PART)[0].encode()).digest()
    return int.from_bytes(digest[:8], "big") < eval_fraction * 2.0**64


def split_documents(
    documents: Iterable[Document], eval_fraction: float
) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents, each in the given order."""
    train: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        (held_out if is_held_out(document.name, eval_fraction) else train).append(document)
    return train, held_out


def drop_repeats(documents: Iterable[Document], share: float = 0.2) -> list[Document]:
    """Drops documents that mostly repeat others, so that none is held out and trained on at once.

    The language reference prints many sections twice, alone and within a longer topic. Longest
    first, a document goes when paragraphs of the documents kept so far make up more than `share`
    of its bytes. The others stay in the given order.
    """
    documents = list(documents)
    seen: set[bytes] = set()
    kept = set()
    for index in sorted(range(len(documents)), key=lambda i: -len(documents[i].text)):
        paragraphs = _paragraphs(documents[index].text)
        repeated = sum(len(text) for text in paragraphs if text in seen)
        if repeated <= share * sum(map(len, paragraphs)):
            kept.add(index)
            seen.update(paragraphs)
    return [document for index, document in enumerate(documents) if index in kept]


def _paragraphs(text: bytes) -> list[bytes]:
    """Paragraphs with their white space evened out; short ones say nothing about their origin."""
    evened = (b" ".join(paragraph.split()) for paragraph in text.split(b"\n\n"))
    return [paragraph for paragraph in evened if len(paragraph) >= 40]


def fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 (hexadecimal) over the names and texts, in order."""
    total = hashlib.sha256()
    for name, text in documents:
        for field in (name.encode(), text):
            total.update(len(field).to_bytes(8, "big"))
            total.update(field)
    return total.hexdigest()
