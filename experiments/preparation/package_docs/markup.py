"""HTML as plain text: paragraphs apart, items of lists on lines of their own."""

import re
from html.parser import HTMLParser

_BREAKS = frozenset(
    {
        *("p", "div", "note", "important", "caution", "dl", "ul", "ol", "pre", "table", "tr"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "title", "fullname", "section", "blockquote"),
    }
)
_ITEMS = frozenset({"li", "dt", "dd"})
_INLINE = frozenset(
    {
        *("a", "b", "i", "em", "strong", "code", "tt", "span", "sub", "sup", "br", "hr", "u"),
        *("small", "th", "td", "thead", "tbody", "replaceable", "literal", "function", "var"),
    }
)
_KNOWN = _BREAKS | _ITEMS | _INLINE
_TAG = re.compile(rf"</?({'|'.join(sorted(_KNOWN))})\b[^<>]*>", re.IGNORECASE)


class _Text(HTMLParser):
    """Collects text; "\\n" ends a line and "\\n\\n" a paragraph."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.items = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _ITEMS:
            self.items += 1
            self.parts.append("\n- " if tag == "li" else "\n")
        elif tag == "br":
            self.parts.append("\n")
        elif tag in _BREAKS and not self.items:
            self.parts.append("\n\n")
        elif tag not in _KNOWN:  # a gap to be filled in, such as <project>
            self.parts.append(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in _ITEMS:
            self.items = max(0, self.items - 1)
        elif tag in _BREAKS:
            self.parts.append(" " if self.items else "\n\n")

    def handle_data(self, data: str) -> None:
        self.parts.append(re.sub(r"\s+", " ", data))


def plain_text(text: str) -> str:
    """The text of a string that may hold HTML; a string without tags stays as it is."""
    if not _TAG.search(text):
        return text
    parser = _Text()
    parser.feed(text)
    parser.close()
    found = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", "".join(parser.parts)))
    return re.sub(r"\n{3,}", "\n\n", found).strip()
