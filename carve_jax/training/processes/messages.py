"""What several processes do as one: tell, compare, and stop. With one process, each is nothing."""

import contextlib
import hashlib
import itertools
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed as runtime  # its store of keys and values has no public name
from jax.experimental import multihost_utils

from carve_jax.errors import UserError
from carve_jax.training.settings import differences

Say = Callable[[str], None]
ROOM = "carve_jax"  # under which keys are stored
# A process may check terabytes before it comes; one that died is found by its heartbeat.
WAIT_MS = 24 * 3600 * 1000
SHARED_SECONDS = 10.0  # that a new file may take to be seen on other machines
_LONG = 80  # letters of a value that is sent and shown by its digest

_turns = itertools.count()


class AgreedError(UserError):
    """A mistake that all processes know of and raise at the same place."""


def store() -> Any:
    """The store of keys and values that all processes share; none before they have joined."""
    return runtime.global_state.client


def who() -> str:
    """This process, for a message; `--process` counts from 0, people from 1."""
    return (
        f"process {jax.process_index() + 1} of {jax.process_count()} "
        f"({socket.gethostname()}, pid {os.getpid()})"
    )


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def for_all(say: Say) -> Say:
    """`say` for what every process would say alike: the first alone says it."""
    return say if is_first() else lambda line: None


def exchange(text: str) -> list[str]:
    """The text of each process, in their order. Waits for all of them, and no device for any."""
    count = jax.process_count()
    if count == 1:
        return [text]
    turn = f"{ROOM}/{next(_turns)}"
    store().key_value_set(f"{turn}/{jax.process_index():06d}", text)
    store().wait_at_barrier(turn, WAIT_MS)
    return [value for _, value in sorted(store().key_value_dir_get(f"{turn}/"))]


def from_first(text: str) -> str:
    """The first process's text, on all of them."""
    return exchange(text if is_first() else "")[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What every process must get through: a UserError of one becomes an AgreedError of all.

    Nothing inside may wait for another process.
    """
    if jax.process_count() == 1:
        yield
        return
    fault = None
    try:
        yield
    except UserError as error:
        fault = error
    told = exchange("" if fault is None else json.dumps([who(), str(fault)]))
    faults = [json.loads(text) for text in told if text]
    if faults:
        name, reason = faults[0]
        alike = len(faults) == len(told) and all(other == reason for _, other in faults)
        raise AgreedError(reason if alike else f"{name}: {reason}") from fault


def require_same(what: str, facts: Mapping[str, Any], mend: str) -> None:
    """Holds flat facts of every process against the first one's.

    Args:
      what: they are, such as "the config".
      facts: plain values by name.
      mend: what to do where they differ, as a clause.

    Raises:
      AgreedError: some process has others; those that differ are named.
    """
    mine = {name: _short(value) for name, value in facts.items()}
    theirs = json.loads(from_first(json.dumps(mine)))
    with together():
        differing = differences(theirs, mine, but=frozenset())
        if differing:
            clauses = "; ".join(differing)
            raise UserError(f"{what} is not that of the first process: {clauses}; {mend}")


def require_shared(directory: Path) -> None:
    """Raises AgreedError unless all processes see one and the same directory."""
    if jax.process_count() == 1:
        return
    mark = directory / f".seen-{from_first(secrets.token_hex(8))}"
    with together():
        if is_first():
            mark.touch()
    with together():
        if not _appears(mark):
            raise UserError(
                f"{directory} is not the directory that the first process writes to: give one on "
                "storage that all processes share"
            )
    if is_first():
        mark.unlink()


def held_by_first(tree: Any) -> Any:
    """A tree of arrays that lie on the devices of all processes, whole in the first; else None."""
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    kept = []
    for leaf in leaves:  # one at a time on the devices
        whole = multihost_utils.process_allgather(leaf, tiled=True)
        kept.append(whole if is_first() else None)
    return jax.tree.unflatten(structure, kept) if is_first() else None


def _appears(path: Path) -> bool:
    end = time.monotonic() + SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _short(value: Any) -> Any:
    text = json.dumps(value)
    if len(text) <= _LONG:
        return json.loads(text)  # as it will come back
    return f"{text[:16]}… sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
