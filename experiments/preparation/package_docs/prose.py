"""Which paragraphs are English sentences, and documents of those that are."""

import re
from collections.abc import Iterator

from experiments.preparation.package_docs.draft import Draft

LARGEST_DOCUMENT = 64 << 10  # bytes
LEAST_DOCUMENT = 500
LONGEST_PARAGRAPH = 8 << 10  # characters; what is longer is a table or a list of names
LONGEST_HEADING = 80
SHORT = 40  # characters of a paragraph that says nothing about its origin
LEAST_SHARE = 0.5  # of a document that is in sentences
_OFTEN = """
a about after all also an and any are as at be because been before but by can does each for from had
has have how if in into is it its may more must not of on one only or other should some such than
that the their them then there these they this to use used using was we were what when where whether
which will with without would you your
"""
_COMMON = frozenset(_OFTEN.split())
_EDGES = ".,:;!?()[]{}'\"`*_“”‘’"
_CODE = re.compile(r"^\s*(>>>|\.\.\. |\$ |In \[\d|#!|[|+][-=|+ ]|import |from \S+ import )", re.M)


def is_english(paragraph: str) -> bool:
    """Whether a paragraph is English sentences rather than code, a table or another language.

    It has four words or more, 65% of which are letters alone, and 18% are among the commonest of
    English; and none of its lines begins as code or a table does.
    """
    words = [word.strip(_EDGES) for word in paragraph.split()]
    if len(words) < 4 or len(paragraph) > LONGEST_PARAGRAPH or _CODE.search(paragraph):
        return False
    letters = sum(word.replace("-", "").replace("'", "").isalpha() for word in words)
    common = sum(word.lower() in _COMMON for word in words)
    return letters >= 0.65 * len(words) and common >= 0.18 * len(words)


def _is_heading(paragraph: str) -> bool:
    words = paragraph.split()
    return (
        len(paragraph) <= LONGEST_HEADING
        and any(word.strip(_EDGES).isalpha() for word in words)
        and not _CODE.search(paragraph)
        and "=" not in paragraph.rstrip("=\n")
    )


def english_of(draft: Draft, seen: set[str]) -> list[list[str]]:
    """The sections of a draft, as lists of paragraphs; none if it is mostly something else.

    A paragraph stays if it is English and was not seen before; so does a heading right before one,
    and the heading of a section of which something stays.

    Args:
      draft: what the package has.
      seen: paragraphs of the package so far, which is added to.
    """
    found = [_paragraphs(section.text) for section in draft.sections]
    every = [paragraph for paragraphs in found for paragraph in paragraphs]
    english = sum(len(paragraph) for paragraph in every if is_english(paragraph))
    if english < LEAST_SHARE * sum(map(len, every)):
        return []
    sections = []
    for section, paragraphs in zip(draft.sections, found, strict=True):
        kept = _kept(paragraphs, seen)
        if kept:
            sections.append([section.heading + kept[0], *kept[1:]])
    return sections


def _paragraphs(text: str) -> list[str]:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return [part.strip("\n") for part in re.split(r"\n{2,}", lines) if part.strip()]


def _kept(paragraphs: list[str], seen: set[str]) -> list[str]:
    kept: list[str] = []
    heading: list[str] = []
    for paragraph in paragraphs:
        if not is_english(paragraph):
            heading = [paragraph] if _is_heading(paragraph) else []
            continue
        evened = " ".join(paragraph.split())
        if len(evened) < SHORT or evened not in seen:
            kept += [*heading, paragraph]
        seen.add(evened)
        heading = []
    return kept


def cut(sections: list[list[str]], most: int = LARGEST_DOCUMENT) -> Iterator[bytes]:
    """Texts of at most so many bytes, each of whole paragraphs.

    Behind half of the most, a text ends with its section.
    """
    parts: list[bytes] = []
    size = 0
    for section in sections:
        for number, paragraph in enumerate(section):
            text = f"{paragraph}\n".encode()
            full = size + len(text) + 1 > most
            if parts and (full or (number == 0 and size > most // 2)):
                yield b"\n".join(parts)
                parts, size = [], 0
            parts.append(text)
            size += len(text) + 1
    if parts:
        yield b"\n".join(parts)
