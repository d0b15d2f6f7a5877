"""RULER's probes as training data: prompts in bytes, with the loss on the reply alone.

A row is what `carve_jax.evaluation.ruler` asks of a model with the tokenizer "bytes": the separator
and the prompt, the answers as a good reply gives them, and the separator at which a reply ends. The
filler fills the row, or with `shortest` less of it; zeros without targets follow.
"""

from typing import ClassVar

import numpy as np

from carve_jax.data import ruler
from carve_jax.data.config import DataConfig, check_name
from carve_jax.data.ruler import PROBES, Haystack
from carve_jax.data.synthetic.task import NO_TARGET, Example
from carve_jax.data.tokenizers.tokenizer import ByteTokenizer
from carve_jax.errors import UserError
from carve_jax.shapes import Int32

_INDICES = 1 << 62  # of examples, from which training and held-out ones are drawn


class Ruler:
    """The task; see the module.

    Raises:
      UserError: no such probe, a row or `shortest` too short for it, a `shortest` beyond the row,
        or no text for one that hides in a text.
    """

    settings: ClassVar[tuple[str, ...]] = ("probe", "path", "shortest")

    def __init__(self, config: DataConfig, sequence_length: int) -> None:
        check_name("data.probe", config.probe, PROBES)
        self._probe = PROBES[config.probe]
        self._haystack = Haystack.file(config.path) if config.path else None
        self._sequence_length = sequence_length
        self._bytes = ByteTokenizer()
        self.vocab_size: int = self._bytes.vocab_size
        self._shortest = config.shortest or sequence_length
        if not 0 <= config.shortest <= sequence_length:
            raise UserError(
                f"data.shortest is {config.shortest}; give 0 for examples as long as a row, or a "
                f"length of up to the row's {sequence_length} tokens."
            )
        self._draw(0, self._shortest)  # says what is wrong before training does

    def example(self, rng: np.random.Generator) -> Example:
        """A prompt and its reply."""
        index, length = int(rng.integers(_INDICES)), self._sequence_length
        if self._shortest < length:
            least, most = np.log((self._shortest, length + 1))
            length = int(np.clip(np.exp(rng.uniform(least, most)), self._shortest, length))
        drawn = self._draw(index, length)
        prompt, reply = self._encode(drawn.prompt), self._encode(drawn.reply)
        # Behind the reply comes the separator, which starts what `_encode` gives.
        row = np.concatenate([prompt, reply[1:], reply[:1]])
        tokens = np.zeros(self._sequence_length, np.int32)
        targets = np.full(self._sequence_length, NO_TARGET, np.int32)
        tokens[: len(row) - 1] = row[:-1]
        targets[len(prompt) - 1 : len(row) - 1] = row[len(prompt) :]
        return Example(tokens, targets)

    def _draw(self, index: int, length: int) -> ruler.Example:
        # One more than the row has tokens: the last is a target alone.
        return ruler.example(
            self._probe,
            index,
            length=length + 1,
            encode=self._encode,
            haystack=self._haystack,
            new_tokens=0,
        )

    def _encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        return np.concatenate([[self._bytes.separator], self._bytes.encode(text)])
