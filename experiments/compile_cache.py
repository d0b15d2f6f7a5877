"""Compiled programs, kept from one command to the next in the user's cache folder.

JAX's persistent cache does the work; here is where it lies, when it is used, and how large it may
grow. Commands alone turn it on (`experiments.cli.run`): a library must not write where it was not
asked to.
"""

import contextlib
import os
import stat
import sys
from pathlib import Path

import jax

from carve_jax.files import reason_of, shown
from pallas_kernels.user_cache import user_cache

MOST_BYTES = 2**30
LEAST_SECONDS = 0.1  # what compiles faster than this is not kept
DIRECTORY, SECONDS = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


def keep_compiled() -> None:
    """Turns JAX's persistent compilation cache on, in `$XDG_CACHE_HOME/carve_jax/xla`.

    Nothing is done where the user has chosen: JAX_COMPILATION_CACHE_DIR is set (be it to nothing),
    or JAX_ENABLE_COMPILATION_CACHE is false. A folder that cannot be used is told in one line.
    """
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    if directory() is not None or not enabled:
        return
    try:
        folder = _own_folder()
        _prune(folder, MOST_BYTES)
    except (OSError, RuntimeError) as error:
        print(
            f"warning: what is compiled is not kept for the next command: {reason_of(error)}; set "
            "JAX_COMPILATION_CACHE_DIR to a folder of yours, or to nothing",
            file=sys.stderr,
        )
        return
    jax.config.update(DIRECTORY, str(folder))
    if SECONDS.upper() not in os.environ:
        jax.config.update(SECONDS, LEAST_SECONDS)


def directory() -> str | None:
    """The folder that JAX keeps compiled programs in; None or "" where it keeps none."""
    return jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]


def keep_none_by_default() -> None:
    """Undoes `keep_compiled`, for one of several processes of a run; a user's choice stays.

    The first process alone writes to the cache. Where the others do not see its folder it would
    load what they compile, and on GPUs those would wait in vain for its share of the tuning.
    """
    if DIRECTORY.upper() not in os.environ:
        jax.config.update(DIRECTORY, None)


def _own_folder() -> Path:
    """The user's folder, made unless it is there.

    Raises:
      OSError: it cannot be made or written, or others may write there: what lies in it is run.
      RuntimeError: the user has no home directory.
    """
    folder = user_cache("xla")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{shown(str(folder))} cannot be made ({reason_of(error)})") from error
    status = folder.stat()
    foreign = hasattr(os, "getuid") and status.st_uid != os.getuid()
    if foreign or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"others may write to {shown(str(folder))}")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise OSError(f"{shown(str(folder))} cannot be written")
    return folder


def _prune(folder: Path, most: int) -> None:
    """Removes what was not used for longest, until the folder holds at most so many bytes.

    JAX could do it (`jax_compilation_cache_max_size`), but there a process that is killed as it
    writes keeps all later ones from writing.
    """
    used = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process prunes as well
            status = path.stat()
            used.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in used)
    for _, size, path in sorted(used):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
