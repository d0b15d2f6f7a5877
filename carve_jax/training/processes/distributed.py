"""One run in several processes: they come together, watch over each other, and end together.

JAX's distributed runtime connects them (`jax.distributed`). What it leaves out is added here: that
a process which stops for a reason of its own says it to the others, which may be waiting inside a
collective operation for something that never comes.
"""

import atexit
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax

from carve_jax.errors import UserError
from carve_jax.training.processes.messages import ROOM, AgreedError, store, who
from carve_jax.training.processes.stopping import Interrupted, TrainingDiverged

COMPLETION_INDEX = "JOB_COMPLETION_INDEX"  # a Kubernetes indexed Job tells its pods theirs
POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0  # that a process whose peer is gone waits for that one's reason
LAST_SECONDS = 20.0  # that the first process waits for the others to leave
MARGIN_SECONDS = 60  # JAX ends the process when its own time to connect is over
# How libraries say that another process is gone.
_GONE = ("gloo", "nccl", "coordination", "heartbeat", "unavailable", "connection", "deadline")
# Raised by all processes at the same step, or at the same point of agreement.
_SHARED = (AgreedError, Interrupted, TrainingDiverged)
_FAULT, _LEFT = f"{ROOM}/fault", f"{ROOM}/left/"


class PeerLost(RuntimeError):
    """Another process is gone; starting all of them again goes on from the last checkpoint."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


class Peers(NamedTuple):
    """How a process finds the others.

    Attributes:
      coordinator: HOST:PORT of the first process; None: the cluster (SLURM, Open MPI, TPU) tells
        this and what follows.
      processes: how many.
      process: which this is, from 0.
      timeout: seconds that all have to come.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    timeout: int = 300


def peers_of(
    coordinator: str | None, count: int | None, index: int | None, detect: bool, timeout: int
) -> Peers | None:
    """What a command was given, checked; None for a process that is alone.

    Raises:
      UserError: flags that do not fit together.
    """
    if timeout < 1:
        raise UserError(f"--peer_timeout is {timeout}; give seconds, at least 1")
    if coordinator is None:
        if count is not None or index is not None:
            raise UserError(
                "--processes and --process need --coordinator=HOST:PORT, where the first process "
                "listens; or give --distributed alone"
            )
        return Peers(timeout=timeout) if detect else None
    if detect:
        raise UserError("give --distributed, or --coordinator with what belongs to it; not both")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator={coordinator!r}: give HOST:PORT, such as node1:8476")
    if index is None:
        index = _completion_index()
    if count is None or count < 1 or not 0 <= index < count:
        raise UserError(
            f"--processes={count} --process={index}: give how many processes there are, and which "
            "of them this is, from 0"
        )
    return Peers(coordinator, count, index, timeout)


def _completion_index() -> int:
    found = os.environ.get(COMPLETION_INDEX, "")
    if not found.isdecimal():
        raise UserError(
            "--coordinator needs --process, which says which of the processes this is, from 0; "
            f"in a Kubernetes indexed Job it is ${COMPLETION_INDEX}"
        )
    return int(found)


@contextlib.contextmanager
def joined(peers: Peers | None) -> Iterator[None]:
    """Makes this process one of several while a run lasts; with None it stays alone.

    To be entered before JAX is used. An error of this process alone ends all the others with its
    exit code, after a sentence that names process and reason.

    Raises:
      UserError: the others did not come, or no cluster was found.
      PeerLost: another process is gone.
    """
    if peers is None:
        yield
        return
    _connect(peers)
    watch = _Watch()
    try:
        yield
    except _SHARED:
        watch.stop()
        raise
    except BaseException as error:
        told = _as_told(error)
        watch.tell(told)
        # What JAX does at the end waits for the others, and they will not come.
        atexit.register(_leave_peers, _exit_code(told))
        if told is error:
            raise
        raise told from error
    watch.stop()


def _connect(peers: Peers) -> None:
    """Starts `jax.distributed`."""
    # Its own answer to SIGTERM would hide the signal from this process until training begins.
    jax.config.update("jax_enable_preemption_service", False)
    late = threading.Timer(peers.timeout, _too_late, [peers])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            peers.coordinator,
            peers.processes,
            peers.process,
            initialization_timeout=peers.timeout + MARGIN_SECONDS,
            cluster_detection_method=None if peers.coordinator is None else "deactivate",
        )
    except ValueError as error:
        if peers.coordinator is not None:
            raise
        raise UserError(
            "--distributed: no cluster was found (SLURM's srun, Open MPI's mpirun, TPU); give "
            "--coordinator=HOST:PORT --processes=N --process=I"
        ) from error
    finally:
        late.cancel()


def _too_late(peers: Peers) -> None:
    # JAX's own end of patience aborts the process with a stack trace.
    where = "" if peers.coordinator is None else f" at {peers.coordinator}"
    number = "all" if peers.processes is None else f"all {peers.processes}"
    print(
        f"error: not {number} processes came together{where} within {peers.timeout} s "
        f"(--peer_timeout): see that each was started, with the same --coordinator and --processes "
        "and a --process of its own, and that its machine reaches that address",
        file=sys.stderr,
    )
    _leave(UserError.exit_code)


def _as_told(error: BaseException) -> BaseException:
    """The error itself, or `PeerLost` where it only says that another process is gone."""
    text = str(error)
    if isinstance(error, UserError) or not any(word in text.lower() for word in _GONE):
        return error
    time.sleep(GRACE_SECONDS)  # if that one said why, `_Watch` ends this process meanwhile
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return PeerLost(
        f"{who()} lost another process ({first[:160]}): the checkpoints that were finished are "
        "whole; start all processes again to go on"
    )


def _exit_code(error: BaseException) -> int:
    return 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_peers(code: int) -> None:
    """Ends this process at once; the first, whose end JAX answers by aborting the others, last."""
    with contextlib.suppress(Exception):  # the first process is gone
        if jax.process_index():
            store().key_value_set(f"{_LEFT}{jax.process_index()}", "")
        end, others = time.monotonic() + LAST_SECONDS, jax.process_count() - 1
        while jax.process_index() == 0 and len(store().key_value_dir_get(_LEFT)) < others:
            if time.monotonic() > end:
                break
            time.sleep(POLL_SECONDS / 5)
    _leave(code)


class _Watch:
    """A thread that ends this process when another one has said why it stops."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="peers", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join()

    def tell(self, error: BaseException) -> None:
        """Says to the others why this process stops."""
        self.stop()
        reason = str(error) if isinstance(error, (UserError, PeerLost)) else repr(error)
        with contextlib.suppress(Exception):  # another was first, or the first process is gone
            store().key_value_set(_FAULT, json.dumps([who(), reason, _exit_code(error)]))

    def _listen(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            with contextlib.suppress(Exception):  # nothing has been said
                name, reason, code = json.loads(store().key_value_try_get(_FAULT))
                print(f"error: {name} stopped: {reason}", file=sys.stderr)
                _leave_peers(code)
