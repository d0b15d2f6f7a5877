"""What a run's figures depend on besides its config: code, versions, devices, implementation."""

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import carve_jax
from carve_jax.errors import UserError
from carve_jax.files import read_json, write_atomically

FILE_NAME = "provenance.json"
PACKAGES = (
    "carve_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
    "ml-collections",
)  # fmt: skip


def describe_code() -> dict[str, Any]:
    """Commit and versions, as plain values."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def describe_environment() -> dict[str, Any]:
    """Commit, versions, devices, Python and command of this process, as plain values."""
    return {
        **describe_code(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_provenance(
    workdir: Path, facts: dict[str, Any], say: Callable[[str], None] = lambda line: None
) -> None:
    """Writes `facts` to provenance.json; those of earlier starts go to its list "earlier".

    Args:
      workdir: of the run.
      facts: plain values.
      say: takes one line for the user where those of earlier starts cannot be read.
    """
    path = workdir / FILE_NAME
    previous = _read(path, say)
    earlier = previous.pop("earlier", [])
    starts = [one for one in earlier if isinstance(one, dict)] if isinstance(earlier, list) else []
    earlier = [*starts, *([previous] if previous else [])]
    write_atomically(path, json.dumps({**facts, "earlier": earlier}, indent=2) + "\n")


def add_provenance(workdir: Path, facts: dict[str, Any]) -> None:
    """Adds what is known only at the end to provenance.json."""
    path = workdir / FILE_NAME
    write_atomically(path, json.dumps({**_read(path), **facts}, indent=2) + "\n")


def _read(path: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """What is there; of a file that does not read, that it does not: no run stops for it."""
    try:
        return read_json(path, mend="it is written anew, without the earlier starts")
    except FileNotFoundError:
        return {}
    except UserError as error:
        say(str(error))
        return {"damaged": str(error)}


def device_peak_bytes() -> int | None:
    """The most memory this process has held on one of its devices; None where JAX does not say."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return max(peaks, default=None)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # run from a checkout


def _git(*arguments: str) -> str | None:
    """Output of a git command in the checkout this code runs from; None outside of one."""
    root = Path(carve_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
