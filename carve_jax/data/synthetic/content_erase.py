"""A task whose erase gate must know what the memory holds: a mode, set long ago, decides.

A row is `mode filler … | key value key value … | key key …` (`recall.py`). Values are −1 or +1 and
every key is written `num_writes` times. In mode "replace" the answer to a key is its last value; in
mode "accumulate" it is the sign of the sum of all its values, of which there is an odd number. The
mode is behind at least four tokens of filler when the first key comes, out of reach of a short
convolution of width 4. Half of the keys end on a value against their majority, at random, so that
last value and majority say nothing of one another: a model that knows one of them in both modes is
right in 3/4 of its answers, one that knows nothing in 1/2.

Tokens: 0 filler, 1 "replace", 2 "accumulate", 3 for −1, 4 for +1, from 5 on keys. With `vocab_size`
5 + `num_pairs` every example has the same keys.

**What a content-aware gate needs.** With orthonormal keys the rule at b = 1 keeps the last value in
the row k_nᵀS of key n, at b = 0 the sum: N rows, and one more for the mode, which the outputs at
writes may read and the gate then sees, from the second gate chunk on.

**What is proved: one memory-blind layer, real values, exact answers.** Let each of N keys be
written twice with real values, x and then y in R^d, in place of ±1, and asked for once: mode
"replace" wants y, "accumulate" x + y. Let at least W − 1 tokens of filler stand between mode,
writes and queries. Take one layer of the rule, H heads of K × V, whose q, k, v and gates are any
continuous functions of the last W tokens (here W = 4), and any function of its output at a query.
If 2·N·d > H·K·(V + 2W), it cannot answer all queries in both modes.

Proof. (1) Behind the first W tokens both modes see the same inputs, so S_t = M_t S_{t−1} + U_t with
the same M_t and U_t. Before the queries, S^mode = C + Φ D^mode in each head: C is what the writes
leave in an empty memory, Φ the product of all M_t, and D^mode the state after the first W tokens.
C and Φ depend on the values, D^mode does not. (2) A token adds a rank of one to a state, so
D^accumulate − D^replace = Σ a_i c_iᵀ with i ≤ 2W and constant a_i ∈ R^K, c_i ∈ R^V. Hence
S^accumulate = S^replace + Σ (Φ a_i) c_iᵀ is a function of z = (S^replace, Φ a_1, …, Φ a_2W), which
has H·K·(V + 2W) numbers. (3) What the queries' windows hold is fixed, so the answers y are a
function of S^replace, x + y of S^accumulate, and all 2·N·d values are a function of z. The
continuous map from values to z is thus injective; by invariance of domain it cannot lead into a
space of fewer dimensions. ∎ If keys, decays and erase gates do not see the values, Φ is constant
and 2·N·d > H·K·V is enough. The content-aware gate of above does with N·d ≤ (K − 1)·V.

**What is evidence only.** Tokens are discrete, and a real number holds any number of bits: a
memory-blind layer may keep Σ (1−β)^{R−i} x_i, which has every value of the key in its digits, and
sort it out when reading. Three writes of a key make 8 such numbers, which an MLP tells apart; R
writes make 2^R, and only rounding and training, not the theorem, are against it. Two heads, or two
rows per key, hold both answers without any trick, so the state must be full: one head, about as
many keys as rows. A second layer sees outputs of the first and is not memory-blind. What trained
models do, blind ones that find such tricks among them, is in
experiments/results/2026-11-25_content_erase.
"""

import itertools
from typing import ClassVar

import numpy as np

from carve_jax.data.config import DataConfig
from carve_jax.data.synthetic.recall import Rewriting
from carve_jax.data.synthetic.task import Example
from carve_jax.errors import UserError

REPLACE, ACCUMULATE, MINUS, PLUS, FIRST_KEY = 1, 2, 3, 4, 5
MOST_WRITES = 15
# The mode and what hides it from a convolution of width 4.
_PREFIX = 5


class ContentErase:
    """The task; see the module.

    Raises:
      UserError: writes and queries do not fit, no sum has a sign, or too few keys.
    """

    settings: ClassVar[tuple[str, ...]] = ("vocab_size", "num_pairs", "num_queries", "num_writes")

    def __init__(self, config: DataConfig, sequence_length: int) -> None:
        self._layout = Rewriting(config, sequence_length, least_filler=_PREFIX)
        self.vocab_size = config.vocab_size
        if self._layout.writes not in range(3, MOST_WRITES + 1, 2):
            raise UserError(
                f"data.num_writes is {self._layout.writes}; give an odd number from 3 to "
                f"{MOST_WRITES}, so that a sum of −1 and +1 has a sign, not always the last one's."
            )
        every = np.array(list(itertools.product((-1, 1), repeat=self._layout.writes)), np.int8)
        agree = np.sign(every.sum(axis=1)) == every[:, -1]
        self._values_of_key = every[agree], every[~agree]
        if self.vocab_size < FIRST_KEY + self._layout.keys:
            raise UserError(
                f"data.vocab_size is {self.vocab_size}; modes, values and {self._layout.keys} keys "
                f"need at least {FIRST_KEY + self._layout.keys}."
            )

    def example(self, rng: np.random.Generator) -> Example:
        """A row of a random mode."""
        mode = REPLACE if rng.integers(2) else ACCUMULATE
        pool = self.vocab_size - FIRST_KEY
        keys = FIRST_KEY + rng.choice(pool, self._layout.keys, replace=False)
        values = self._values(rng)
        answers = values[:, -1] if mode == REPLACE else np.sign(values.sum(axis=1))
        tokens, targets = self._layout.row(rng, keys, _tokens(values), _tokens(answers))
        tokens[0] = mode
        return Example(tokens, targets)

    def _values(self, rng: np.random.Generator) -> np.ndarray:
        """−1 and +1 [N, R]; whether last value and majority agree is a fair coin of each key."""
        coins = rng.integers(2, size=(self._layout.keys, 1))
        for_one, against = (
            rows[rng.integers(len(rows), size=self._layout.keys)] for rows in self._values_of_key
        )
        return np.where(coins, for_one, against)


def _tokens(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, PLUS, MINUS)
