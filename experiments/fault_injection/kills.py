"""Training processes that are killed at random moments, again and again, until one ends."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from carve_jax.errors import UserError
from carve_jax.training.workdir import CHECKPOINTS
from experiments.fault_injection.outcome import differences, outcome

KINDS = ("anywhere", "training", "saving")
SAVING_SECONDS = 0.05  # about what the save of a tiny state takes


class Death(NamedTuple):
    """One kill.

    Attributes:
      kind: what was waited for; one of `KINDS`.
      seconds: from then to the kill.
      checkpoint: step of the newest checkpoint that was left; 0 for none.
      mid_save: whether an unfinished checkpoint was left.
    """

    kind: str
    seconds: float
    checkpoint: int
    mid_save: bool


class Trainer:
    """Starts training processes of one config.

    Args:
      config: path of the config file.
      overrides: its flags.
      directory: for logs and compiled programs.
    """

    def __init__(self, config: str, overrides: Sequence[str], directory: Path) -> None:
        self._command = [
            sys.executable, "-m", "experiments.train", f"--config={config}", *overrides,
        ]  # fmt: skip
        self._log = directory / "log.txt"
        # One program for all: what is compared is the training, not the compiler.
        self._environment = {
            "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **os.environ,
        }

    def start(self, workdir: Path) -> "subprocess.Popen[bytes]":
        """A process that trains in `workdir`."""
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [*self._command, f"--workdir={workdir}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )

    def said(self, text: str) -> bool:
        """Whether the last process has said this."""
        return text in self._log.read_text("utf-8", "replace")

    def finish(self, process: "subprocess.Popen[bytes]") -> None:
        """Waits for the end.

        Raises:
          UserError: it failed.
        """
        if process.wait() != 0:
            last = self._log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise UserError(f"training ended with {process.returncode}: {''.join(last)}")

    def is_training(self) -> bool:
        """Whether the last process has got so far."""
        return self.said("training from step")


def wait_until(
    condition: Callable[[], bool], process: "subprocess.Popen[bytes]", seconds: float = 600
) -> bool:
    """Waits for a condition; False if the process ended before."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.001)
    return False


def unfinished(workdir: Path) -> set[str]:
    """Names of checkpoints that are being written, or were when their writer died."""
    return {path.name for path in (workdir / CHECKPOINTS).glob("*-tmp*")}


def kill(trainer: Trainer, workdir: Path, kind: str, seconds: float) -> Death | None:
    """Starts a process and kills it; None if it came to its end before."""
    before = unfinished(workdir)
    process = trainer.start(workdir)
    try:
        alive = {
            "anywhere": lambda: True,
            "training": lambda: wait_until(trainer.is_training, process),
            "saving": lambda: wait_until(lambda: bool(unfinished(workdir) - before), process),
        }[kind]()
        if alive and not wait_until(lambda: False, process, seconds) and process.poll() is None:
            process.kill()
            process.wait()
            steps = [int(p.name) for p in (workdir / CHECKPOINTS).glob("*") if p.name.isdigit()]
            return Death(kind, round(seconds, 4), max(steps, default=0), bool(unfinished(workdir)))
        trainer.finish(process)
        return None
    finally:
        process.kill()
        process.wait()


def left_alone(trainer: Trainer, workdir: Path) -> dict[str, float]:
    """Trains to the end; seconds from the start of the process, and from the start of training."""
    begun = time.monotonic()
    process = trainer.start(workdir)
    wait_until(trainer.is_training, process)
    started = time.monotonic()
    trainer.finish(process)
    ended = time.monotonic()
    return {"anywhere": ended - begun, "training": ended - started}


def torture(
    trainer: Trainer, config: Any, directory: Path, kills: int, rng: random.Random
) -> dict[str, Any]:
    """The run left alone, then the kills; what happened, as plain values."""
    begun = time.monotonic()
    left_alone(trainer, directory / "alone")  # compiles; the next one has the pace of all others
    longest = left_alone(trainer, directory / "again") | {"saving": SAVING_SECONDS}
    print(f"left alone: {config.steps} steps in {longest['anywhere']:.1f} s", flush=True)
    expected = outcome(config, directory / "alone")
    found = [differences(outcome(config, directory / "again"), expected)]
    deaths: list[Death] = []
    while len(deaths) < kills:
        workdir = directory / f"run_{len(found)}"
        while len(deaths) < kills:
            # Saving comes up at least every third time, so that few kills have it too.
            kind = "saving" if len(deaths) % 3 == 1 else rng.choice(KINDS)
            death = kill(trainer, workdir, kind, rng.uniform(0, longest[kind]))
            if death is None:
                break
            deaths.append(death)
            where = f"step {death.checkpoint}" + (", mid-save" if death.mid_save else "")
            print(f"kill {len(deaths)} ({kind}): {where} was left", flush=True)
        trainer.finish(trainer.start(workdir))
        found.append(differences(outcome(config, workdir), expected))
        print(f"run {len(found) - 1} at its end: {', '.join(found[-1]) or 'the same'}", flush=True)
    return {
        "runs": len(found) - 1,
        "kills": [death._asdict() for death in deaths],
        "mid_save": sum(death.mid_save for death in deaths),
        "seconds": round(time.monotonic() - begun, 1),
        "differences": found,
    }
