"""Text that needles are hidden in: sentences without end, cut to so many characters."""

import dataclasses
import itertools
import random
import re
from collections.abc import Sequence
from pathlib import Path

from carve_jax.errors import UserError
from carve_jax.files import local_path, read_text, reason_of

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
LARGEST = 1 << 30  # bytes of a haystack's file
_REPEAT = "repeat:"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclasses.dataclass(frozen=True)
class Haystack:
    """Sentences that follow each other in a circle.

    Attributes:
      name: for the facts of a result.
      sentences: at least one; needles come between them.
      joint: what stands between two of them.
    """

    name: str
    sentences: tuple[str, ...]
    joint: str

    @classmethod
    def noise(cls) -> "Haystack":
        """RULER's five short sentences, a line, again and again."""
        return cls.repeated(NOISE, name="noise")

    @classmethod
    def repeated(cls, sentence: str, name: str = "repeated") -> "Haystack":
        """Any sentence, a line, again and again.

        Raises:
          UserError: there is nothing in it.
        """
        return cls(name, (_not_blank(sentence, "the repeated sentence"),), "\n")

    @classmethod
    def text(cls, text: str, name: str = "text") -> "Haystack":
        """The sentences of a text, whose runs of white space become single spaces.

        Raises:
          UserError: there is nothing in it.
        """
        sentences = _SENTENCE_END.split(_not_blank(text, f"the haystack {name!r}"))
        return cls(name, tuple(" ".join(sentence.split()) for sentence in sentences), " ")

    @classmethod
    def file(cls, path: str | Path) -> "Haystack":
        """The sentences of a text file, named by the file.

        Raises:
          UserError: it cannot be read as UTF-8, or there is nothing in it.
        """
        path = local_path(path, "the haystack")
        try:
            text = read_text(path, LARGEST)
        except (OSError, ValueError) as error:
            raise UserError(
                f"The haystack {str(path)!r} cannot be read ({reason_of(error)}); give noise, "
                f"{_REPEAT}SENTENCE or the path of a text file in UTF-8."
            ) from error
        return cls.text(text, name=Path(path).name)

    @classmethod
    def named(cls, text: str) -> "Haystack":
        """What a user's word stands for: "noise", "repeat:SENTENCE", or the path of a text file.

        Raises:
          UserError: see `file` and `repeated`.
        """
        if text == "noise":
            return cls.noise()
        if text.startswith(_REPEAT):
            return cls.repeated(text.removeprefix(_REPEAT))
        return cls.file(text)

    @staticmethod
    def is_file(text: str) -> bool:
        """Whether a user's word stands for a file."""
        return text != "noise" and not text.startswith(_REPEAT)

    def begin(self, rng: random.Random) -> int:
        """A sentence to begin with: any, so that examples differ."""
        return rng.randrange(len(self.sentences))

    def cut(self, begin: int, size: int) -> list[str]:
        """The sentences from one on, of `size` characters when joined; the last may be a part."""
        found: list[str] = []
        sentences = itertools.islice(itertools.cycle(self.sentences), begin, None)
        while size > 0:
            sentence = next(sentences)
            piece = (sentence + self.joint)[:size]
            size -= len(piece)
            found.append(sentence if size else piece)
        return found

    def hide(
        self, sentences: Sequence[str], needles: Sequence[str], depths: Sequence[float]
    ) -> str:
        """The text with each needle between two sentences.

        Args:
          sentences: as `cut` gives them.
          needles: in any order; those at one place stay in theirs.
          depths: of each needle, from 0 (before the first sentence) to 1 (behind the last).
        """
        places = [round(depth * len(sentences)) for depth in depths]
        parts: list[str] = []
        begin = 0
        for place, needle in sorted(zip(places, needles, strict=True), key=lambda pair: pair[0]):
            parts += [*sentences[begin:place], needle]
            begin = place
        return self.joint.join([*parts, *sentences[begin:]])


def _not_blank(text: str, what: str) -> str:
    if not text.strip():
        raise UserError(f"There is nothing in {what}; give some text.")
    return text.strip()
