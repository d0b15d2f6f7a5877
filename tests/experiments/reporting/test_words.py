"""Text and numbers as Markdown and as a page."""

import math
import re

import pytest
from markdown_it import MarkdownIt

from experiments.reporting import page, words


@pytest.mark.parametrize(
    "text", ["a | b", "*_x_* [y](z) `c`", "gate_chunk <i> ~~no~~", "``", "a\nb"]
)
def test_any_text_survives_markdown(text):
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    plain = " ".join(text.split())
    for made, tag in (
        (words.table(["x"], [[words.escape(text)]]), "td"),
        (words.code(text), "code"),
    ):
        found = re.search(rf"<{tag}[^>]*>(.*?)</{tag}>", parser.render(made))[1]
        for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
            found = found.replace(entity, sign)
        assert found == plain


def test_numbers():
    assert words.signed(-0.0123, 3) == "−0.012"
    assert words.signed(0.0123, 3) == "+0.012"
    assert words.decimals(0.0123) == 3
    assert words.decimals(4.2) == 1
    assert words.probability(0.00001) == "<\N{NO-BREAK SPACE}0.0001"
    assert words.probability(1 / 16) == "0.0625"
    assert words.number(-math.inf, 2) == "−∞"
    assert words.join(["a", "b", "c"]) == "a, b and c"


def test_the_page_is_titled_and_takes_no_html():
    made = page.render("# A <question>?\n\n<b>text</b>\n", {}, {})
    assert "&lt;b&gt;text&lt;/b&gt;" in made
    assert "<title>A &lt;question&gt;?</title>" in made
