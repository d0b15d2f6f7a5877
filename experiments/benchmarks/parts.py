"""What --only keeps of a suite."""

from collections.abc import Sequence

from carve_jax.errors import UserError


def kept_parts(wanted: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The names that hold one of these texts; all of them if there is no text.

    Raises:
      UserError: a text that no name holds.
    """
    for text in wanted:
        if not any(text in name for name in names):
            raise UserError(f"--only: no part's name holds {text!r}; there are {', '.join(names)}")
    return tuple(name for name in names if not wanted or any(text in name for text in wanted))
