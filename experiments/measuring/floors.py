"""The least time that a call of the rule can take: its work over the machine's measured rates."""

from collections.abc import Mapping

import jax.numpy as jnp

from experiments.measuring.rule_calls import DIRECTIONS, Shape


def floors(
    shape: Shape,
    rule: str,
    direction: str,
    dtype: str,
    ceilings: Mapping[str, float],
    *,
    tile: int,
) -> dict[str, float]:
    """Least work of a rule in one pass, and the time it takes at the measured rates.

    Arithmetic, for a token and head with K = V = D and tiles of C tokens, counting triangles as
    halves: forward 4 products of C·D (P, T, the solve, PR) and 3 of 2·D² (Ē S, qS, the state);
    backward recomputes 3 and 2·D² once (T, P, R), then 8 of C·D (dP, dT, two for R, four for the
    scores) and 6 of 2·D². Exponentials and the content gate (once per gate chunk) are not counted.
    Bytes: forward reads the inputs and writes the output; backward reads the inputs and the
    output's gradient and writes the inputs' gradients; saved states and temporaries are not
    counted. The log-decay is float32.

    Args:
      shape, dtype: of the inputs.
      rule: "gdn2" or "carve".
      direction: of `DIRECTIONS`.
      ceilings: the machine's "flop_per_second" and "bytes_per_second".
      tile: C.

    Returns:
      "flop", "bytes", and each of them in seconds.
    """
    tokens = shape.batch * shape.length * shape.heads
    d, size = shape.channels, jnp.dtype(dtype).itemsize
    # q, k, v and the erase gate; w for each channel (GDN-2) or each head (CARVE); then g.
    inputs = (4 * d + (d if rule == "gdn2" else 1)) * size + 4 * d
    flop, moved = 4 * tile * d + 3 * 2 * d * d, inputs + d * size
    if direction != DIRECTIONS[0]:
        flop += 11 * tile * d + 7 * 2 * d * d
        moved += inputs + d * size + inputs
    return {
        "flop": tokens * flop,
        "bytes": tokens * moved,
        "arithmetic_seconds": tokens * flop / ceilings["flop_per_second"],
        "bytes_seconds": tokens * moved / ceilings["bytes_per_second"],
    }
