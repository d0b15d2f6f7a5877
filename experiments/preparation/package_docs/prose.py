"""Which paragraphs are English sentences, and documents of those that are."""

import re
import zlib
from collections.abc import Callable, Iterator

from experiments.preparation.package_docs.draft import Draft, Section

LARGEST_DOCUMENT = 64 << 10  # bytes
LEAST_DOCUMENT = 500
LONGEST_PARAGRAPH = 8 << 10  # characters; what is longer is a table or a list of names
LONGEST_HEADING = 80
ROW = 8  # words in a row, which a paragraph shares with those before it or not
MOST_SHARED = 0.5  # of a paragraph's rows; above, it repeats what was said before
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


def english_of(draft: Draft) -> Draft:
    """The English of a draft; nothing if it is mostly something else.

    Paragraphs stay that are English, and headings right before one.
    """
    every = [part for section in draft.sections for part in paragraphs_of(section.text)]
    english = sum(len(paragraph) for paragraph in every if is_english(paragraph))
    if english < LEAST_SHARE * sum(map(len, every)):
        return Draft(draft.name, [])
    return _filtered(draft, is_english)


def new_of(draft: Draft, seen: set[int]) -> Draft:
    """What a draft of English has that was not said before.

    Args:
      draft: as `english_of` gives it.
      seen: checksums of the rows of words of the package so far, which is added to.
    """

    def is_new(paragraph: str) -> bool:
        rows = _rows(paragraph)
        new = is_english(paragraph) and len(rows & seen) <= MOST_SHARED * len(rows)
        seen.update(rows if new else ())
        return new

    return _filtered(draft, is_new)


def _filtered(draft: Draft, stays: Callable[[str], bool]) -> Draft:
    sections = []
    for section in draft.sections:
        kept: list[str] = []
        heading: list[str] = []
        for paragraph in paragraphs_of(section.text):
            if stays(paragraph):
                kept += [*heading, paragraph]
                heading = []
            else:
                heading = [paragraph] if _is_heading(paragraph) else []
        if kept:
            sections.append(Section(section.heading, "\n\n".join(kept)))
    return Draft(draft.name, sections)


def paragraphs_of(text: str) -> list[str]:
    """What empty lines part, without white space at the ends of lines."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return [part.strip("\n") for part in re.split(r"\n{2,}", lines) if part.strip()]


def _rows(paragraph: str) -> set[int]:
    """Checksums of the rows of words in a paragraph, or of the whole of a short one."""
    words = paragraph.lower().encode().split()
    count = max(1, len(words) - ROW + 1)
    return {zlib.crc32(b" ".join(words[start : start + ROW])) for start in range(count)}


def cut(draft: Draft, most: int = LARGEST_DOCUMENT) -> Iterator[bytes]:
    """Texts of at most so many bytes, each of whole paragraphs.

    Behind half of the most, a text ends with its section.
    """
    parts: list[bytes] = []
    size = 0
    for section in draft.sections:
        for number, paragraph in enumerate(paragraphs_of(section.text)):
            text = f"{section.heading * (number == 0)}{paragraph}\n".encode()
            full = size + len(text) + 1 > most
            if parts and (full or (number == 0 and size > most // 2)):
                yield b"\n".join(parts)
                parts, size = [], 0
            parts.append(text)
            size += len(text) + 1
    if parts:
        yield b"\n".join(parts)
