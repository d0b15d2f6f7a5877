"""The process of one run: its command, how it is started, and the memory that it holds."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from carve_jax.training.workdir import FILE_NAME as CONFIG
from experiments.sweeps.plan import PlannedRun
from experiments.sweeps.store import Store

# Becomes the command, which the kernel will send SIGTERM when the sweep (argv[1]) is gone.
LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss


def train_command(store: Store, run: PlannedRun) -> list[str]:
    """The command of a run, which may be given by hand just as well."""
    directory = store.directory(run)
    return [
        *(sys.executable, "-m", "experiments.train"),
        *(f"--config={directory / CONFIG}", f"--workdir={directory}"),
    ]


def launch(
    command: Sequence[str], environment: Mapping[str, str], *, log: IO[bytes], lock: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Starts a command that is asked to stop when this process dies, and holds the lock till then.

    Args:
      command: of the run.
      environment: what it has besides this process's own.
      log: takes what it prints.
      lock: the locked file of the run.
    """
    return subprocess.Popen(
        [sys.executable, "-S", "-c", LAUNCH, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        start_new_session=True,  # ctrl-C reaches it through the sweep, once
        pass_fds=[lock.fileno()],
    )


def peak_rss(pid: int) -> int | None:
    """The most memory a living process has held, in bytes; None where Linux does not say.

    What `os.wait4` says of a process that is over counts the memory of the one that started it too.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


class Child(NamedTuple):
    """A process of a run."""

    run: PlannedRun
    process: "subprocess.Popen[bytes]"
    slot: int
    started: float
