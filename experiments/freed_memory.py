"""Memory that a train step frees stays with the process, for the next step to use.

On a CPU XLA asks the C library for a step's temporary memory anew each time, and glibc gives large
blocks back to the kernel at once, which then clears every page again at the next step's first
touch: a fifth of the quickstart's time (experiments/results/LOG.md).
"""

import ctypes
import os
import sys

# Names of <malloc.h>: one arena, as others hold 64 MiB at most; nothing by mmap; most is kept.
ONE_ARENA, NO_MMAP, KEEP = (-8, 1), (-4, 0), (-1, 2**31 - 1)


def keep_freed() -> bool:
    """Sets glibc's allocator so, for this process, and says whether it did.

    Not where there is another C library, nor where the environment sets glibc's allocator already
    (`MALLOC_…`, `GLIBC_TUNABLES`). It is for the start of a process: what is large and freed
    afterwards, up to 2 GiB, stays with it until it ends.
    """
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*each) for each in (ONE_ARENA, NO_MMAP, KEEP))
