"""Where what costs time to find out, and can be found out again, is kept between processes."""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """This project's folder of that name in the user's cache: `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
      RuntimeError: the user has no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return cache / "carve_jax" / name
