"""The report's Markdown as one HTML page that needs nothing else: pictures and style are inside."""

import base64
import html
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

TEMPLATE = Path(__file__).with_name("page.html")


def render(markdown: str, svgs: Mapping[str, str], pngs: Mapping[str, bytes]) -> str:
    """The page of a report.

    Args:
      svgs: drawings by the name under which the Markdown shows them; they take the page's colours.
      pngs: the same of pictures that are to stay as they are.
    """

    def image(tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        name, shows = str(tokens[index].attrs["src"]), html.escape(tokens[index].content)
        if name in svgs:
            return f'<span class="figure" role="img" aria-label="{shows}">{svgs[name]}</span>'
        if name not in pngs:  # what a file says may be written like a picture
            return shows
        source = f"data:image/png;base64,{base64.b64encode(pngs[name]).decode()}"
        return f'<span class="figure"><img alt="{shows}" src="{source}"></span>'

    def paragraph(tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        inner = tokens[index + 1].children or ()
        shows = any(token.type == "image" and token.attrs["src"] in svgs for token in inner)
        return '<p class="chart">' if shows else "<p>"

    def heading(tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        slug = re.sub(r"[^\w]+", "-", tokens[index + 1].content.lower()).strip("-")
        return f'<{tokens[index].tag} id="{html.escape(slug)}">'

    # No HTML of the text gets through: what a run said on its way down stays text.
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    rules: Any = parser.renderer.rules  # type: ignore[attr-defined]
    rules["image"] = image
    rules["paragraph_open"] = paragraph  # title, drawing and caption stay together
    rules["heading_open"] = heading  # with the names that links in Markdown go to
    # A wide table scrolls by itself; the focus lets keys do it too.
    rules["table_open"] = lambda *_: '<div class="scroll" tabindex="0"><table>\n'
    rules["table_close"] = lambda *_: "</table></div>\n"
    title = next(line[2:] for line in markdown.splitlines() if line.startswith("# "))
    return string.Template(TEMPLATE.read_text("utf-8")).substitute(
        title=html.escape(MarkdownIt().renderInline(title)), body=parser.render(markdown)
    )
