"""State tracking: the running product of permutations, asked for after every token.

The word problem of a group (Merrill et al. 2024, arXiv 2404.08819): a token is an element, the
target at t is the product of the first t + 1 tokens. "parity" is S2: in finite precision a linear
recurrence whose transitions have no negative eigenvalue cannot follow it (Grazzi et al. 2024,
2411.12537); erase gates in [0, 1] give none, those in [0, 2] do (`negative_eigenvalues`). "s3" and
"s5" are all permutations of three and of five things. S5 is not solvable: unless NC1 is TC0, no
fixed number of layers with diagonal transitions follows it at every length. An edit of the rule is
at most one reflection, a swap of two things; moving all five may take four.

Tokens are the permutations in lexicographic order, so 0 is the identity; the earlier token acts
first. Held-out examples longer than the training ones say whether the state is followed or a
length was learned: evaluate with another `sequence_length`.
"""

import itertools
from typing import ClassVar

import numpy as np

from carve_jax.data.config import GROUPS, DataConfig, check_name
from carve_jax.data.synthetic.task import Example


class StateTracking:
    """The task; see the module.

    Raises:
      UserError: no such group.
    """

    settings: ClassVar[tuple[str, ...]] = ("group",)

    def __init__(self, config: DataConfig, sequence_length: int) -> None:
        check_name("data.group", config.group, GROUPS)
        self._sequence_length = sequence_length
        self._table = products(GROUPS[config.group])
        self.vocab_size = len(self._table)

    def example(self, rng: np.random.Generator) -> Example:
        """Random elements and their running products."""
        tokens = rng.integers(self.vocab_size, size=self._sequence_length, dtype=np.int32)
        running = itertools.accumulate(tokens, lambda state, token: self._table[state, token])
        return Example(tokens, np.fromiter(running, np.int32, self._sequence_length))


def products(things: int) -> np.ndarray:
    """[first, second] → the permutation that does one and then the other, by their numbers."""
    elements = np.array(list(itertools.permutations(range(things))))
    composed = elements[:, elements]  # [second, first, i] = second(first(i))
    digits = things ** np.arange(things)[::-1]  # lexicographic order is that of these numbers
    return np.searchsorted(elements @ digits, composed @ digits).T
