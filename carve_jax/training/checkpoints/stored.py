"""One checkpoint on disk: what of it is small is read, and held against the seal, without Orbax."""

import errno
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from carve_jax.errors import UserError
from carve_jax.files import parse_json, read_text
from carve_jax.training.checkpoints.digest import FORMAT, Bound, verify_state
from carve_jax.training.processes.messages import from_first, is_first


class Stored(NamedTuple):
    """The checkpoint of a step in a directory of them; every file may be damaged."""

    directory: Path
    step: int

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.directory / str(self.step)

    def examine(self) -> tuple[str, str | None]:
        """Its seal, and what is wrong with its bytes; all processes get the same answer.

        Raises:
          UserError: it is of a newer version.
        """
        seal, reason, newer = "", None, 0
        if is_first():
            try:
                found = self.description()
                version = found.get("format", 1)
                newer = version if type(version) is int and version > FORMAT else 0
                if not newer:
                    seal = self._verify(found)
            except Exception as error:  # whatever a damaged file makes a reader raise
                reason = reason_in(error)
        seal, reason, newer = json.loads(from_first(json.dumps([seal, reason, newer])))
        if newer:
            raise UserError(
                f"the checkpoint of step {self.step} in {self.directory} is of format {newer}, and "
                f"this carve_jax reads those up to {FORMAT}: it was written by a newer one; update "
                "carve_jax"
            )
        return seal, reason

    def description(self) -> dict[str, Any]:
        """What `described` wrote, unchecked.

        Raises:
          ValueError, OSError: it does not read.
        """
        found = parse_json(read_text(self.folder / "meta" / "metadata"))
        if not isinstance(found, dict):
            raise ValueError("its description is no object")
        return found

    def meta(self) -> dict[str, Any]:
        """What was saved beside the state.

        Raises:
          ValueError, OSError, KeyError: it does not read, or is not what was saved.
        """
        found = self.description()
        if zlib.crc32(found["meta"].encode()) != found["meta_crc32"]:
            raise ValueError("its description does not match its checksum")
        return json.loads(found["meta"])

    def position(self) -> str:
        """The text of the data position; raises as `meta` does."""
        position = parse_json(read_text(self.folder / "data" / "metadata"))["position"]
        if zlib.crc32(position.encode()) != self.description()["data_crc32"]:
            raise ValueError("its data position does not match its checksum")
        return position

    def _verify(self, found: dict[str, Any]) -> str:
        meta, position = self.meta(), self.position()
        if meta.get("step") != self.step:
            raise ValueError(f"it was saved as step {meta.get('step')}")
        bound = Bound(self.step, found["meta"], position)
        return verify_state(self.folder / "state", bound, sealed="format" in found)


def reason_in(error: BaseException) -> str:
    """The one fact a reader needs out of a storage layer's many lines."""
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
        return "no space left on the device"
    if "File too large" in text:
        return "a file may not grow that large here"
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return first if len(first) <= 160 else first[:157] + "..."
