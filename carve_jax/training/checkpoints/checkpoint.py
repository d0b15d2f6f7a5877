"""Checkpoints: Orbax composites of state, data position and config, used whole or not at all.

What was saved together is sealed together (`digest`): a part of another step, or a folder under
another name, is as damaged as a flipped bit.

Arrays are restored to the shardings of the abstract state given, whatever mesh and however many
processes saved them. The data position is one for all processes (see `data`), and there is no
random state besides: seed and step are all that training draws from.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from carve_jax.errors import UserError
from carve_jax.training.checkpoints.digest import (
    Bound,
    DigestedRestore,
    DigestedSave,
    described,
    writer,
)
from carve_jax.training.checkpoints.keeping import policy_of
from carve_jax.training.checkpoints.stored import Stored, reason_in
from carve_jax.training.checkpoints.times import check_times
from carve_jax.training.processes.messages import exchange, from_first, is_first


class Restored(NamedTuple):
    """What a checkpoint held; the data iterator, if one was given, has been set in place.

    Attributes:
      seal: SHA-256 of all of it: another checkpoint has another.
    """

    step: int
    state: Any
    meta: dict[str, Any]
    seal: str


class Checkpoints:
    """The checkpoints of one run directory, newest last; use as a context manager.

    A checkpoint is deleted, after the next one is finished, unless one of the `keep` rules has it.

    Args:
      directory: made if missing, unless `read_only`.
      keep: how many of the newest to keep.
      keep_every: also keep those whose step is a multiple of it; 0 for none.
      keep_best: also keep so many of lowest `eval_loss` (see `save`).
      say: takes one line for the user.
      read_only: touch nothing, so that a run in progress is not disturbed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        keep_every: int = 0,
        keep_best: int = 0,
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
        if read_only or is_first():
            folders = [self._stored(step).folder for step in self._on_disk()]
            check_times(folders, read_only=read_only, say=say)
        if not read_only:
            exchange("")  # nobody looks before they are put aside
        self._losses = self._read_losses()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy_of(keep, keep_every, keep_best, self._losses),
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

    def _on_disk(self) -> list[int]:
        return self.steps() if self.directory.is_dir() else []

    def last_good(self) -> str:
        """Where the newest finished checkpoint is, as a clause for a message."""
        steps = self.steps()
        if not steps:
            return f"no checkpoint had been finished in {self.directory}"
        return f"the last good checkpoint is step {steps[-1]} in {self.directory / str(steps[-1])}"

    def settled(self) -> str:
        """`last_good` once the save in progress has ended, well or not."""
        with contextlib.suppress(UserError):
            self.wait()
        return self.last_good()

    def best_step(self) -> int:
        """The step of the finished checkpoint with the lowest held-out loss.

        Raises:
          UserError: none of those on disk was evaluated.
        """
        found = [step for step in self.steps() if step in self._losses]
        if not found:
            raise UserError(
                f"no checkpoint in {self.directory} was evaluated at its step: choose one of "
                f"{self.steps()} by its number"
            )
        return min(found, key=lambda step: (self._losses[step], step))

    def save(self, step: int, state: Any, iterator: Any, meta: dict[str, Any]) -> None:
        """Starts a save and returns once the state may change; writing goes on in the background.

        Args:
          step: of the state.
          state: a tree of arrays.
          iterator: a data iterator, whose position is saved.
          meta: plain values; an `eval_loss` is what `keep_best` and `best_step` go by.

        Raises:
          UserError: this save, or the one before it, could not be written.
        """
        position = json.dumps(iterator.get_state(), sort_keys=True)
        body = json.dumps({**meta, "step": step}, sort_keys=True)
        if "eval_loss" in meta:
            self._losses[step] = meta["eval_loss"]
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=DigestedSave(state, bound=Bound(step, body, position)),
                    data=ocp.args.JsonSave({"position": position}),
                    meta=ocp.args.JsonSave(described(body, position)),
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
        self,
        like: Any,
        iterator: Any = None,
        *,
        step: int | None = None,
        partial: bool = False,
        multiple_of: int = 1,
        accept: Callable[[dict[str, Any]], None] = lambda meta: None,
    ) -> Restored | None:
        """The newest checkpoint that can be read and is whole, or None if there is none at all.

        Every newer one that was skipped is told of in one line, and moved aside unless read-only.

        Args:
          like: the state, abstract (`jax.eval_shape`) or real.
          iterator: a data iterator to set to the position saved.
          step: that step and no other.
          partial: `like` is a dict of some fields of the state; only those are read.
          multiple_of: steps that are no multiple of it come after all that are.
          accept: takes the meta before anything is restored; may raise a UserError.

        Raises:
          UserError: there are checkpoints, but none can be read; or not the step asked for; or one
            that is whole, but of a newer version or not of this program; or what `accept` raises.
        """
        for unfinished in self._unfinished:
            self._say(f"checkpoint of step {unfinished} was not finished; it is not used")
        self._unfinished.clear()
        steps = self._steps_of_first()
        if step is not None:
            if step not in steps:
                raise UserError(f"no checkpoint of step {step} in {self.directory}: it has {steps}")
            steps = [step]
        steps.sort(key=lambda candidate: (candidate % multiple_of == 0, candidate))
        damaged: list[int] = []
        for candidate in reversed(steps):
            stored = self._stored(candidate)
            seal, reason = stored.examine()
            if reason is not None:
                self._say(f"checkpoint of step {candidate} cannot be used: {reason}")
                damaged.append(candidate)
                continue
            meta = stored.meta()
            accept(meta)
            restored = self._read_whole(stored, like, iterator, partial)
            if damaged:
                self._say(f"the checkpoint of step {candidate} is used instead")
                self._set_aside(damaged)
            return Restored(candidate, restored, meta, seal)
        if damaged:
            raise UserError(
                f"no usable checkpoint in {self.directory}: see the lines above; restore the files "
                "from a copy, or start again in an empty --workdir"
            )
        return None

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps: the run has gone back to `step`."""
        for later in self._steps_of_first():
            if later > step:
                self._manager.delete(later)
                self._losses.pop(later, None)

    def _steps_of_first(self) -> list[int]:
        """`steps`, the same in every process while the first deletes some."""
        return json.loads(from_first(json.dumps(self.steps())))

    def _read_losses(self) -> dict[int, float]:
        """Held-out losses of the checkpoints on disk; none of one that is damaged."""
        losses = {}
        for step in self._on_disk():
            with contextlib.suppress(Exception):  # told of when it is the one to restore
                losses[step] = float(self._stored(step).meta()["eval_loss"])
        return losses

    def _read_whole(self, stored: Stored, like: Any, iterator: Any, partial: bool) -> Any:
        """The state of a checkpoint whose bytes are those that were saved.

        Raises:
          UserError: it does not fit this program; it stays where it is, for it is not damaged.
        """
        reason = ""
        try:
            # First what is small: reading many arrays is not begun for a position that is refused.
            if iterator is not None:
                iterator.set_state(json.loads(stored.position()))
            state = self._read(stored, like, partial)
        except UserError:
            raise
        except Exception as error:  # of many kinds
            reason = reason_in(error)
        reason = next(filter(None, exchange(reason)), "")
        if reason:
            by = stored.description().get("written_by") or "an earlier version"
            raise UserError(
                f"the checkpoint of step {stored.step} in {self.directory} is whole, but this "
                f"program cannot read it ({reason}); it was written by {by}, and this is "
                f"{writer()}: use the code and the packages that wrote it"
            )
        return state

    def _read(self, stored: Stored, like: Any, partial: bool) -> Any:
        like = _placed(like)
        if partial:
            wanted = ocp.args.PyTreeRestore(
                like, ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
            )
            with ocp.PyTreeCheckpointer() as reader:
                return reader.restore(stored.folder / "state", wanted)
        arrays = ocp.args.Composite(state=DigestedRestore(like))
        return self._manager.restore(stored.step, args=arrays).state

    def _stored(self, step: int) -> Stored:
        return Stored(self.directory, step)

    def _set_aside(self, steps: list[int]) -> None:
        if self._read_only:
            return
        for step in steps if is_first() else []:
            target = self.directory.with_name(f"{self.directory.name}_damaged") / str(step)
            target.parent.mkdir(exist_ok=True)
            number = sum(1 for _ in target.parent.iterdir())
            self._stored(step).folder.rename(target.with_name(f"{step}_{number}"))
        exchange("")  # nobody looks before they are gone
        self._manager.reload()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # storage layers raise many kinds
            raise UserError(
                f"a checkpoint could not be written: {reason_in(error)}; {self.last_good()}; "
                "mend that and run the same command again"
            ) from error


def _placed(tree: Any) -> Any:
    """The shapes of `tree`, each with its sharding, or the default device where it has none."""
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def place(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None) or default
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, tree)
