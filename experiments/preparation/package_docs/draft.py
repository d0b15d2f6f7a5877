"""What a document is made of before it is known which of its paragraphs stay."""

from typing import NamedTuple


class Section(NamedTuple):
    """A text below the name of what it describes.

    Attributes:
      heading: the name with what follows it: a colon and a space, or an empty line.
      text: paragraphs with empty lines between them.
    """

    heading: str
    text: str


class Draft(NamedTuple):
    """A document as a package has it.

    Attributes:
      name: that of the package, and of the document within it.
      sections: in order.
    """

    name: str
    sections: list[Section]

    @property
    def text(self) -> str:
        """All of it."""
        return "\n\n".join(section.heading + section.text for section in self.sections)
