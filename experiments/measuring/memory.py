"""Bytes of arrays, and of the process that holds them."""

import gc
import os
import resource
import sys
import threading
from types import TracebackType
from typing import Any

import jax

LOOK_EVERY = 0.01  # seconds


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of the arrays that its shapes describe."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def live_bytes() -> int:
    """Bytes of all arrays on the devices."""
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def peak_rss_bytes() -> int:
    """The most memory this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class PeakResident:
    """The most memory that the process holds while the context is open, looked at again and again.

    The kernel's own high-water mark (`ru_maxrss`) would be that of the compiler, under which a
    growth of what runs later can hide. Linux alone tells what is held now.

    Attributes:
      bytes: the most so far.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakResident":
        """Begins to look."""
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Looks for the last time."""
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(LOOK_EVERY):
            self._look()

    def _look(self) -> None:
        with open("/proc/self/statm", encoding="utf-8") as file:
            pages = int(file.read().split()[1])
        self.bytes = max(self.bytes, pages * os.sysconf("SC_PAGE_SIZE"))
