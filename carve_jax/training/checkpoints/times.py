"""Orbax's own note of when a checkpoint was saved: nothing depends on it, and nothing stops for it.

Orbax opens that file of every checkpoint when it looks at their directory. One that is damaged so
that it still is JSON ends in whatever its parts raise there, and a pipe in its place is waited for.
"""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from carve_jax.errors import UserError
from carve_jax.files import Each, Maybe, check_shape, parse_json, read_text, reason_of

FILE_NAME = "_CHECKPOINT_METADATA"
STATISTICS = Maybe(Each(Maybe(float)))
SHAPE = {
    "item_handlers": Maybe(Each(Maybe(str))),
    "metrics": Maybe(Each(object)),
    "performance_metrics": STATISTICS,
    "init_timestamp_nsecs": Maybe(int),
    "commit_timestamp_nsecs": Maybe(int),
    "custom_metadata": Maybe(Each(object)),
}
LATEST = 1 << 62  # nanoseconds since 1970, in the year 2116


def check_times(steps: Iterable[Path], *, read_only: bool, say: Callable[[str], None]) -> None:
    """Puts aside, in each checkpoint's folder, such a file that Orbax could not read.

    Args:
      steps: the folders.
      read_only: touch nothing.
      say: takes one line for the user.

    Raises:
      UserError: one does not read, and nothing may be touched, or cannot be.
    """
    for folder in steps:
        path = folder / FILE_NAME
        reason = _fault(path)
        if not reason:
            continue
        if read_only:
            raise UserError(
                f"{path} cannot be read ({reason}): remove it, for it holds no more than the time "
                "of the save"
            )
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_name(f"{FILE_NAME}.damaged"))
        say(f"{path} cannot be read ({reason}); it is put aside: it held but the time of the save")


def _fault(path: Path) -> str:
    """Why Orbax could not read the file; "" where it can, or sees none."""
    try:
        if not path.exists():
            return ""
        found = parse_json(read_text(path))
        check_shape(found, SHAPE)
        for name in ("init_timestamp_nsecs", "commit_timestamp_nsecs"):
            if not 0 <= (found.get(name) or 0) < LATEST:
                raise ValueError(f"{name} is {found[name]}")
    except (OSError, ValueError) as error:
        return reason_of(error)
    return ""
