"""What the Markdown of README, docs and CONTRIBUTING holds: links, anchors, code."""

import functools
import html.parser
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@functools.cache
def parsed(page: Path) -> tuple[Token, ...]:
    """The tokens of a page, those within lines in their places."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8"))
    return tuple(token for each in tokens for token in (each, *(each.children or ())))


def python_of(page: Path) -> list[str]:
    """The blocks of code that are marked as Python."""
    return [t.content for t in parsed(page) if t.type == "fence" and t.info.strip() == "python"]


def shell_of(page: Path) -> list[str]:
    """The blocks of code that are marked as commands, without the newline at their ends."""
    found = [t.content for t in parsed(page) if t.type == "fence" and t.info.strip() == "sh"]
    return [block.strip() for block in found]


def code_of(page: Path) -> Iterator[str]:
    """Every line of code and every span of code within a line."""
    for token in parsed(page):
        if token.type in ("fence", "code_block"):
            yield from token.content.replace("\\\n", " ").splitlines()
        elif token.type == "code_inline":
            yield token.content


def links_of(page: Path) -> list[str]:
    """Where links and pictures lead, those of HTML included."""
    found = [
        str(token.attrs[name])
        for token in parsed(page)
        for name in ("href", "src")
        if name in token.attrs
    ]
    reader = _Links()
    for token in parsed(page):
        if token.type in ("html_block", "html_inline"):
            reader.feed(token.content)
    return found + reader.found


@functools.cache
def anchors_of(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    pairs = itertools.pairwise(parsed(page))
    headings = [inline.content for before, inline in pairs if before.type == "heading_open"]
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return frozenset(plain)


class _Links(html.parser.HTMLParser):
    """Collects `href` and `src`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src") and value]
