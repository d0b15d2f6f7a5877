"""Kills a training run at random moments and holds its end against that of one left alone.

  python -m experiments.faults [--kills=30] [--workdir=DIR] [--seed=0] [--output=FILE]
      [--config=FILE] [--config.KEY=VALUE …]

A run is trained to its end, twice. Then it is trained again, in processes that die by SIGKILL:
anywhere from their first import on, while training, or when a checkpoint is being written. Each is
followed by the same command, as a scheduler would, until --kills of them have died; a run that
reaches its end between two kills makes room for another. At its end each must have, to the bit, the
arrays, the data position and the figures of the run that was left alone. Without --config it is a
tiny associative recall with a checkpoint every other step and the guard on; thirty kills take about
ten minutes on two cores. Exits with 1 if anything differs.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from carve_jax.errors import UserError
from carve_jax.files import made_directory, output_file, write_atomically
from carve_jax.training.checkpoints.checkpoint import Checkpoints
from carve_jax.training.reports.metrics import CLOCK, read_metrics
from carve_jax.training.reports.provenance import describe_environment
from carve_jax.training.run import build
from carve_jax.training.workdir import CHECKPOINTS
from experiments import cli

CONFIG = "configs/mqar.py"
TINY = {
    "model.d_model": 32, "model.layers": 1, "model.mlp_dim": 32, "model.key_dim": 8,
    "model.value_dim": 8, "batch_size": 8, "data.eval_examples": 16, "steps": 40, "log_every": 1,
    "eval_every": 10, "checkpoint_every": 2, "guard.loss_factor": 2.0, "guard.window": 5,
    "guard.limit": 40,
}  # fmt: skip
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


def outcome(config: Any, workdir: Path) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Final state, data position, and figures without those of a clock."""
    run = build(config)
    iterator = run.pipeline.train_iterator()
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        restored = checkpoints.restore(run.state_shapes, iterator, step=config.steps)
    assert restored is not None  # else restore raises
    lines = [
        {name: value for name, value in line.items() if name not in CLOCK}
        for line in read_metrics(workdir)
    ]
    return jax.device_get(restored.state), iterator.get_state(), lines


def differences(found: Any, expected: Any) -> list[str]:
    """What differs between two outcomes, in words."""
    different = []
    for path, value in jax.tree_util.tree_leaves_with_path(expected[0]):
        other = dict(jax.tree_util.tree_leaves_with_path(found[0]))[path]
        if np.asarray(value).tobytes() != np.asarray(other).tobytes():
            different.append(f"array {jax.tree_util.keystr(path)}")
    if found[1] != expected[1]:
        different.append("the data position")
    for line, other in zip(expected[2], found[2], strict=False):
        if line != other:
            different.append(f"the figures of step {line['step']}")
    if len(found[2]) != len(expected[2]):
        different.append(f"{len(found[2])} lines of figures in place of {len(expected[2])}")
    return different


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


def main(argv: list[str]) -> None:
    """Parses the flags, kills and compares."""
    values = flags.FlagValues()
    flags.DEFINE_integer("kills", 30, "Processes to kill.", 1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of the moments.", flag_values=values)
    flags.DEFINE_string("workdir", None, "For the runs; a temporary one.", flag_values=values)
    flags.DEFINE_string("output", None, "JSON file for the record.", flag_values=values)
    flags.DEFINE_string("config", None, "Python file with get_config().", flag_values=values)
    overrides = cli.parse_flags(values, argv)
    if values.config is None:
        overrides = [*(f"--config.{name}={value}" for name, value in TINY.items()), *overrides]
    path = values.config or CONFIG
    config = cli.load_config(path, overrides)
    output = output_file(values.output) if values.output else None
    with tempfile.TemporaryDirectory() as temporary:
        directory = made_directory(values.workdir or temporary, "--workdir")
        if any(directory.iterdir()):
            raise UserError(f"--workdir {directory} is not empty: give a new one")
        trainer = Trainer(path, overrides, directory)
        record = torture(trainer, config, directory, values.kills, random.Random(values.seed))
    print(
        f"{len(record['kills'])} kills, {record['mid_save']} of them mid-save, in "
        f"{record['seconds']} s: "
        + ("something differs" if any(record["differences"]) else "every run ended the same")
    )
    if output:
        facts = describe_environment() | {"command": cli.command_line("faults", argv)}
        record = {"date": facts["started"][:10], **facts, **record}
        write_atomically(output, json.dumps(record, indent=2) + "\n")
    if any(record["differences"]):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
