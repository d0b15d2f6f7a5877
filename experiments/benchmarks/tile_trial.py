"""A candidate of the tile search on trial: right, by `chunked`, or dropped; and then timed."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.gpu import TURN
from experiments.measuring.rule_calls import Shape, rule_contender, rule_inputs
from experiments.measuring.timing import Contender, LeftOut, attempt, median_seconds
from pallas_kernels.tiling import Tiles

# ‖kernel − chunked‖ / ‖chunked‖ of each output and gradient. float32 inputs must not be taken for
# tf32 ones (5e-4).
TOLERANCE = {"bfloat16": 2e-2, "float16": 1e-2, "float32": 1e-4}


class Trial:
    """Measures candidates for one rule at one dtype and shape, forward and backward.

    Args:
      shape, dtype: of the inputs.
      rule: "gdn2" or "carve".
      repeats, turn_seconds: as `median_seconds` takes them.
      implementation: what is measured; it takes `tiles`.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: str,
        rule: str,
        repeats: int,
        turn_seconds: float = TURN,
        implementation: str = "pallas",
    ) -> None:
        self._inputs = correlated(rule_inputs(shape, dtype))
        self._rule, self._implementation = rule, implementation
        self._tolerance = TOLERANCE[dtype]
        self._repeats, self._turn_seconds = repeats, turn_seconds
        self._expected = _run(self._contender("chunked"))

    def measure(self, tiles: Tiles) -> float | str:
        """Seconds of a call, or why these tiles are dropped."""
        return attempt(lambda: self._seconds(tiles))

    def _seconds(self, tiles: Tiles) -> float:
        made = self._contender(self._implementation, tiles=tiles)
        error = difference(_run(made), self._expected)
        if not error <= self._tolerance:  # NaN too
            raise LeftOut(f"{self._rule} is off by {error:.1e}, {self._tolerance:.0e} at most")
        rounds = {self._rule: made}
        times = median_seconds(rounds, self._repeats, turn_seconds=self._turn_seconds)
        return times[self._rule]

    def _contender(self, implementation: str, **options: Any) -> Contender:
        return rule_contender(self._inputs, self._rule, implementation, backward=True, **options)


def correlated(x: Mapping[str, jax.Array], share: float = 0.7) -> dict[str, jax.Array]:
    """The inputs with keys of a head that point the same way: cosines of about `share`."""
    key = x["key"].astype(jnp.float32)
    common = key[:, :1]
    mixed = share**0.5 * common + (1 - share) ** 0.5 * key
    mixed = mixed / jnp.linalg.norm(mixed, axis=-1, keepdims=True)
    return {**x, "key": mixed.astype(x["key"].dtype)}


@jax.jit
def _differences(left: Any, right: Any) -> jax.Array:
    def relative(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.astype(jnp.float32).ravel(), b.astype(jnp.float32).ravel()
        size = jnp.linalg.norm(b)
        return jnp.linalg.norm(a - b) / jnp.where(size == 0, 1.0, size)

    return jnp.stack(jax.tree.leaves(jax.tree.map(relative, left, right)))


def difference(left: Any, right: Any) -> float:
    """The largest ‖a − b‖ / ‖b‖ (‖a‖ if b is 0) of the arrays in two trees; NaN if there is one."""
    return float(jnp.max(_differences(left, right)))


def _run(entry: Contender) -> Any:
    return jax.block_until_ready(entry.compiled(*entry.arguments))
