"""What is wrong with weights, all of it at once."""

from collections.abc import Sequence

from carve_jax.errors import UserError


class InteropError(UserError):
    """Weights that do not fit: one sentence, then every name that is at fault.

    Attributes:
      missing: names that are needed and were not given.
      unexpected: names that were given and have no place.
      misshapen: names of the wrong shape or dtype, each with what was given and expected.
    """

    def __init__(
        self,
        sentence: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Sequence[str] = (),
    ) -> None:
        """An error whose message is the sentence and the three lists."""
        self.missing, self.unexpected = tuple(missing), tuple(unexpected)
        self.misshapen = tuple(misshapen)
        lines = [sentence]
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("misshapen", self.misshapen),
        ):
            if names:
                lines += [f"  {title} ({len(names)}):", *(f"    {name}" for name in names)]
        super().__init__("\n".join(lines))
