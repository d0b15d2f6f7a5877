"""RULER's tasks: what each hides in its filler, and what it asks (Hsieh et al. 2024, 2404.06654).

A task drafts an example from a stream of random numbers, and the draft can be written out with any
amount of filler; what is hidden does not depend on the amount. Where RULER's own form may be too
long, shorter ones follow it. The wording of the prompts is
RULER's, answer prefix included, as base models are asked.
"""

import dataclasses
import functools
import math
import random
import string
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from carve_jax.data.ruler.haystack import Haystack
from carve_jax.data.ruler.words import COMPOUNDS, draw_compounds, draw_values

ENDLESS = 1 << 40  # an amount of filler that no prompt reaches
LONG_FROM = 4096  # tokens, below which common words come less often


class Draft(NamedTuple):
    """An example whose length is open.

    Attributes:
      write: the prompt with so much filler.
      answers: what the model should say.
      reply: the answers as a reply would give them, after the prompt.
      depths: of what is asked for, from 0 to 1; none where it is spread all over.
      least: the least filler.
      most: the most.
      form: what it is called, of a task that has several.
    """

    write: Callable[[int], str]
    answers: tuple[str, ...]
    reply: str
    depths: tuple[float, ...] = ()
    least: int = 0
    most: int = ENDLESS
    form: str = ""


class Task(Protocol):
    """What a probe asks."""

    def drafts(self, key: str, length: int, haystack: Haystack) -> Iterator[Draft]:
        """The forms of a key's example, RULER's first; the same in every process.

        Args:
          key: of the random stream.
          length: tokens that there will be; sets what some tasks draw their filler from.
          haystack: the filler, for tasks whose filler is text.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Needles:
    """Needles in a haystack: values hidden under keys, some of which are asked for.

    Attributes:
      keys: how many, each with its values.
      values: of each key.
      queries: keys that are asked for.
      key_kind, value_kind: "words", "numbers" or "uuids".
      among_needles: the haystack are needles of other keys, a line each, and no text.
      terse: in the fewest words, which are not RULER's.
    """

    keys: int = 1
    values: int = 1
    queries: int = 1
    key_kind: str = "words"
    value_kind: str = "numbers"
    among_needles: bool = False
    terse: bool = False

    def drafts(self, key: str, length: int, haystack: Haystack) -> Iterator[Draft]:
        """See `Task`."""
        rng = random.Random(key)
        keys = draw_values(rng, self.key_kind, self.keys)
        values = draw_values(rng, self.value_kind, self.keys * self.values)
        owners = [owner for owner in range(self.keys) for _ in range(self.values)]
        depths = [rng.random() for _ in owners]
        asked = rng.sample(range(self.keys), self.queries)
        if self.among_needles:
            haystack = self._other_needles(rng, length, {*keys, *values})
        begin = haystack.begin(rng)
        needles = [self._needle(keys[o], value) for o, value in zip(owners, values, strict=True)]
        before, after = self._frame([keys[owner] for owner in asked])

        def write(size: int) -> str:
            context = haystack.hide(haystack.cut(begin, size), needles, depths)
            return f"{before}{context}\n{after}"

        wanted = [place for owner in asked for place, o in enumerate(owners) if o == owner]
        answers = tuple(values[place] for place in wanted)
        reply = " " + ", ".join(answers)
        yield Draft(write, answers, reply, tuple(depths[place] for place in wanted))

    def _needle(self, key: str, value: str) -> str:
        if self.terse:
            return f"{key} is {value}."
        return f"One of the special magic {self.value_kind} for {key} is: {value}."

    def _other_needles(self, rng: random.Random, length: int, taken: set[str]) -> Haystack:
        """Needles that nobody asks for; more than a prompt has, if one takes twelve tokens."""
        count = length // 12 + 1
        keys = [key for key in draw_values(rng, self.key_kind, count) if key not in taken]
        values = [value for value in draw_values(rng, self.value_kind, count) if value not in taken]
        needles = tuple(self._needle(*pair) for pair in zip(keys, values, strict=False))
        return Haystack("needles", needles, "\n")

    def _frame(self, asked: list[str]) -> tuple[str, str]:
        """What stands before and behind the haystack."""
        kind, kinds = self.value_kind.removesuffix("s"), self.value_kind
        names = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
        if self.terse:
            return "", f"{names} is"
        remember = "Make sure to memorize it. I will quiz you about the"
        where = f"for {names} mentioned in the provided text"
        if self.queries * self.values == 1:
            return (
                f"A special magic {kind} is hidden within the following text. {remember} {kind} "
                "afterwards.\n",
                f"What is the special magic {kind} {where}? The special magic {kind} {where} is",
            )
        return (
            f"Some special magic {kinds} are hidden within the following text. {remember} {kinds} "
            "afterwards.\n",
            f"What are all the special magic {kinds} {where}? The special magic {kinds} {where} "
            "are",
        )


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Variable tracking: assignments hidden in a haystack; which variables have the value?

    Attributes:
      chains: of assignments, each with a value of its own; the first is asked for.
      hops: assignments of a variable to the next, in a chain.
      shot_filler: most characters of filler in the worked example before the question.
    """

    chains: int = 1
    hops: int = 4
    shot_filler: int = 1300

    def drafts(self, key: str, length: int, haystack: Haystack) -> Iterator[Draft]:
        """See `Task`."""
        shot = self._question(f"{key}/shot", haystack, letters=3)
        example = shot.write(min(self.shot_filler, length // 8)) + shot.reply
        question = self._question(key, haystack, letters=5)
        yield question._replace(write=functools.partial(_behind, f"{example}\n\n", question.write))

    def _question(self, key: str, haystack: Haystack, letters: int) -> Draft:
        rng = random.Random(key)
        count = self.hops + 1
        names = _draw_letters(rng, string.ascii_uppercase, letters, self.chains * count)
        values = [str(number) for number in rng.sample(range(10_000, 100_000), self.chains)]
        begin = haystack.begin(rng)
        lines: list[str] = []
        depths: list[float] = []
        for chain, value in enumerate(values):
            own = names[chain * count : (chain + 1) * count]
            sources = [value, *(f"VAR {name}" for name in own[:-1])]
            lines += [f"VAR {name} = {source}" for name, source in zip(own, sources, strict=True)]
            depths += sorted(rng.random() for _ in own)
        asked, answers = values[0], tuple(names[:count])

        def write(size: int) -> str:
            context = haystack.hide(haystack.cut(begin, size), lines, depths)
            return (
                "Memorize and track the chain(s) of variable assignment hidden in the following "
                f"text.\n\n{context}\nQuestion: Find all variables that are assigned the value "
                f"{asked} in the text above. Answer: According to the chain(s) of variable "
                f"assignment in the text above, {count} variables are assigned the value {asked}, "
                "they are:"
            )

        return Draft(write, answers, " " + " ".join(answers), tuple(depths[:count]))


class Counts(NamedTuple):
    """How often words come in a list: the common ones and the others.

    Attributes:
      often, seldom: in the list that is asked about.
      shot: the same in the list of the worked example before it, with how many others there are;
        None for no example.
    """

    often: int
    seldom: int
    shot: tuple[int, int, int] | None = None

    def __str__(self) -> str:
        """What this form is called."""
        return f"{self.often}:{self.seldom}" + ("" if self.shot else ", no example")


# RULER's, from 4096 tokens on and below; and one for a thousand bytes.
LONG, SHORT, SHORTEST = Counts(30, 3, (10, 3, 30)), Counts(6, 1, (3, 1, 10)), Counts(3, 1)


@dataclasses.dataclass(frozen=True)
class CommonWords:
    """Common words: in a numbered list, some words come often and others seldom.

    Attributes:
      common: words that come often; they are asked for.
    """

    common: int = 10

    def drafts(self, key: str, length: int, haystack: Haystack) -> Iterator[Draft]:
        """See `Task`; there is no haystack."""
        for counts in (LONG, SHORT, SHORTEST)[length < LONG_FROM :]:
            example = ""
            if counts.shot is not None:
                often, seldom, others = counts.shot
                shot = self._question(f"{key}/shot", often, seldom, most=others)
                example = shot.write(others) + shot.reply + "\n"
            most = COMPOUNDS - self.common
            question = self._question(key, counts.often, counts.seldom, most)
            yield question._replace(
                write=functools.partial(_behind, example, question.write), form=str(counts)
            )

    def _question(self, key: str, often: int, seldom: int, most: int) -> Draft:
        words = draw_compounds(random.Random(key), self.common + most)
        common = words[: self.common]

        def write(uncommon: int) -> str:
            listed = common * often + words[self.common : self.common + uncommon] * seldom
            random.Random(f"{key}/order").shuffle(listed)
            return (
                "Below is a numbered list of words. In these words, some appear more often than "
                f"others. Memorize the ones that appear most often.\n{_numbered(listed)}\n"
                f"Question: What are the {self.common} most common words in the above list? "
                f"Answer: The top {self.common} words that appear most often in the list are:"
            )

        return Draft(write, tuple(common), " " + _numbered(common), least=1, most=most)


@dataclasses.dataclass(frozen=True)
class FrequentWords:
    """Frequent words: made-up words whose counts follow a power law, the first being dots.

    Attributes:
      alpha: exponent: the word of rank r comes in proportion to r^-alpha.
      letters: of a word.
      tokens_a_word: the vocabulary has a word for so many tokens of the prompt.
    """

    alpha: float = 2.0
    letters: int = 6
    tokens_a_word: int = 50

    def drafts(self, key: str, length: int, haystack: Haystack) -> Iterator[Draft]:
        """See `Task`; there is no haystack."""
        count = max(length // self.tokens_a_word, 4)
        words = _draw_letters(random.Random(key), string.ascii_lowercase, self.letters, count)
        shares = [rank**-self.alpha for rank in range(1, count + 2)]

        def write(amount: int) -> str:
            ranked = zip(["...", *words], shares, strict=True)
            coded = [word for word, share in ranked for _ in range(int(amount * share))]
            random.Random(f"{key}/order").shuffle(coded)
            return (
                "Read the following coded text and track the frequency of each coded word. Find "
                f"the three most frequently appeared coded words. {' '.join(coded)}\nQuestion: Do "
                "not provide any explanation. Please ignore the dots '....'. What are the three "
                "most frequently appeared words in the above coded text? Answer: According to the "
                "coded text above, the three most frequently appeared words are:"
            )

        # From here on the fourth word always comes less often than the third.
        least = math.ceil(1 / (shares[3] - shares[4]))
        yield Draft(write, tuple(words[:3]), " " + " ".join(words[:3]), least=least)


def _behind(example: str, write: Callable[[int], str], amount: int) -> str:
    return example + write(amount)


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _draw_letters(rng: random.Random, alphabet: str, letters: int, count: int) -> list[str]:
    """`count` different words of random letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(alphabet, k=letters))] = None
    return list(found)
