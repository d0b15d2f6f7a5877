"""Checkpoints: Orbax composites of state, data position and config, used whole or not at all."""

import contextlib
import errno
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain.checkpoint
import jax
import orbax.checkpoint as ocp

from carve_jax.errors import UserError
from carve_jax.training.digest import DigestedRestore, DigestedSave


class Restored(NamedTuple):
    """What a checkpoint held; the data iterator, if one was given, has been set in place."""

    step: int
    state: Any
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory, newest last; use as a context manager.

    Args:
      directory: made if missing, unless `read_only`.
      keep: how many to keep.
      say: takes one line for the user.
      read_only: touch nothing, so that a run in progress is not disturbed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        say: Callable[[str], None] = print,
        read_only: bool = False,
    ) -> None:
        self.directory = Path(directory).absolute()
        self._say = say
        self._read_only = read_only
        if read_only and not self.directory.is_dir():
            raise UserError(
                f"no checkpoints in {self.directory}: train first, or correct --workdir"
            )
        unfinished = sorted(p.name.split(".")[0] for p in self.directory.glob("*-tmp*"))
        self._unfinished = [int(step) for step in unfinished if step.isdigit()]
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else keep,
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=not read_only,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        # An error already on its way is the one to tell; closing may meet a failed save again.
        with contextlib.suppress(Exception) if error else self._explained():
            self._manager.close()  # waits for the save in progress

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints on disk, oldest first."""
        return sorted(ocp.utils.checkpoint_steps(self.directory))

    def last_good(self) -> str:
        """Where the newest finished checkpoint is, as a clause for a message."""
        steps = self.steps()
        if not steps:
            return f"no checkpoint had been finished in {self.directory}"
        return f"the last good checkpoint is step {steps[-1]} in {self.directory / str(steps[-1])}"

    def save(self, step: int, state: Any, iterator: Any, meta: dict[str, Any]) -> None:
        """Starts a save and returns once the state may change; writing goes on in the background.

        Raises:
          UserError: this save, or the one before it, could not be written.
        """
        position = json.dumps(iterator.get_state(), sort_keys=True)
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=DigestedSave(state),
                    data=grain.checkpoint.CheckpointSave(iterator),
                    meta=ocp.args.JsonSave(_sealed({**meta, "step": step}, position)),
                ),
                force=True,
            )

    def wait(self) -> None:
        """Waits for the save in progress.

        Raises:
          UserError: it could not be written.
        """
        with self._explained():
            self._manager.wait_until_finished()

    def restore(
        self, like: Any, iterator: Any = None, *, step: int | None = None
    ) -> Restored | None:
        """The newest checkpoint that can be read and is whole, or None if there is none at all.

        Every newer one that was skipped is told of in one line, and moved aside unless read-only.

        Args:
          like: the state, abstract (`jax.eval_shape`) or real.
          iterator: a data iterator to set to the position saved.
          step: that step and no other.

        Raises:
          UserError: there are checkpoints, but none can be read; or not the step asked for.
        """
        for unfinished in self._unfinished:
            self._say(f"checkpoint of step {unfinished} was not finished; it is not used")
        steps = self.steps()
        if step is not None:
            if step not in steps:
                raise UserError(f"no checkpoint of step {step} in {self.directory}: it has {steps}")
            steps = [step]
        damaged: list[int] = []
        for candidate in reversed(steps):
            try:
                restored = self._read(candidate, like, iterator)
            except Exception as error:  # whatever a damaged file makes a reader raise
                self._say(f"checkpoint of step {candidate} cannot be used: {_reason(error)}")
                damaged.append(candidate)
                continue
            if damaged:
                self._say(f"the checkpoint of step {candidate} is used instead")
                self._set_aside(damaged)
            return restored
        if damaged:
            raise UserError(
                f"no usable checkpoint in {self.directory}: see the lines above; restore the files "
                "from a copy, or start again in an empty --workdir"
            )
        return None

    def _read(self, step: int, like: Any, iterator: Any) -> Restored:
        def restore(**items: Any) -> Any:
            return self._manager.restore(step, args=ocp.args.Composite(**items))

        # The small ones first: reading many arrays is not begun for a checkpoint in ruins.
        sealed, position = restore(meta=ocp.args.JsonRestore()).meta, None
        if iterator is not None:
            restore(data=grain.checkpoint.CheckpointRestore(iterator))
            position = json.dumps(iterator.get_state(), sort_keys=True)
        meta = _unsealed(sealed, position)
        return Restored(step, restore(state=DigestedRestore(_placed(like))).state, meta)

    def _set_aside(self, steps: list[int]) -> None:
        if self._read_only:
            return
        for step in steps:
            target = self.directory.with_name(f"{self.directory.name}_damaged") / str(step)
            target.parent.mkdir(exist_ok=True)
            number = sum(1 for _ in target.parent.iterdir())
            (self.directory / str(step)).rename(target.with_name(f"{step}_{number}"))
        self._manager.reload()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # storage layers raise many kinds
            raise UserError(
                f"a checkpoint could not be written: {_reason(error)}; {self.last_good()}; "
                "mend that and run the same command again"
            ) from error


def _placed(tree: Any) -> Any:
    """The shapes of `tree`, each with its sharding, or the default device where it has none."""
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def place(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None) or default
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, tree)


def _sealed(meta: dict[str, Any], position: str) -> dict[str, Any]:
    body = json.dumps(meta, sort_keys=True)
    return {
        "meta": body,
        "meta_crc32": zlib.crc32(body.encode()),
        "data_crc32": zlib.crc32(position.encode()),
    }


def _unsealed(found: dict[str, Any], position: str | None) -> dict[str, Any]:
    if zlib.crc32(found["meta"].encode()) != found["meta_crc32"]:
        raise ValueError("its description does not match its checksum")
    if position is not None and zlib.crc32(position.encode()) != found["data_crc32"]:
        raise ValueError("its data position does not match its checksum")
    return json.loads(found["meta"])


def _reason(error: BaseException) -> str:
    """The one fact a reader needs out of a storage layer's many lines."""
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
        return "no space left on the device"
    if "File too large" in text:
        return "a file may not grow that large here"
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return first if len(first) <= 160 else first[:157] + "..."
