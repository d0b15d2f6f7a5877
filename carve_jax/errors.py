"""Errors that are the user's to mend: commands print them as one sentence, without a traceback."""


class UserError(ValueError):
    """A mistake in what the user gave: says what was given, what is allowed and what to do."""

    exit_code = 2  # of a command that ends with it
