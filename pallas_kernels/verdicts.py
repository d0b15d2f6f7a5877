"""What the self-test found, kept between processes: one small JSON file for each check.

In `$XDG_CACHE_HOME/carve_jax/selftest` (~/.cache by default), under a digest of all that the
finding depends on: the check, the device, the versions of JAX, its CUDA plugin, the compilers and
the driver, and the kernels' sources. A file that cannot be read is as none; a folder that cannot be
written keeps nothing, and each process tests anew.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax

from pallas_kernels.tiling import Tiles
from pallas_kernels.user_cache import user_cache

COMPILERS = re.compile(r"jax|jaxlib|jax-(cuda|triton).*|triton|nvidia-.*(nvcc|nvvm).*")


class Check(NamedTuple):
    """One comparison of the self-test.

    Attributes:
      rule: "gated_delta", "carve", or "decode", one token of the decode step.
      backend: whose kernels.
      dtype: of query, key, value and gates but the log-decay.
      key_channels, value_channels: K and V.
      tiles: of a sequence.
      decay_floor: the promise made to the kernels, kept by the inputs.
      decay_per_head: the log-decay has one channel, for which kernels take a path of their own.
    """

    rule: str
    backend: str
    dtype: str
    key_channels: int
    value_channels: int
    tiles: Tiles | None = None
    decay_floor: float | None = None
    decay_per_head: bool = False

    @property
    def label(self) -> str:
        """The check's name in a table."""
        words = [self.rule, self.backend, self.dtype, f"{self.key_channels}x{self.value_channels}"]
        if self.tiles is not None:
            words += [f"chunk {self.tiles.chunk}", self.tiles.product]
            words += [] if self.rule == "carve" else [self.tiles.solve]
            words += ["in stretches"] if self.tiles.stretches > 1 else []
        if self.decay_floor is not None:
            words.append("bounded")
        if self.decay_per_head:
            words.append("per head")
        return " ".join(words)


class Verdict(NamedTuple):
    """What a check found.

    Attributes:
      check: what was compared.
      errors: of each output and gradient, relative to its largest entry.
      tolerance: largest error allowed.
      seconds: that the check took, compiling included.
    """

    check: Check
    errors: dict[str, float]
    tolerance: float
    seconds: float

    @property
    def worst(self) -> tuple[str, float]:
        """The array that is furthest off, and by how much."""
        return max(self.errors.items(), key=lambda item: item[1])

    @property
    def passed(self) -> bool:
        """Every error is within the tolerance."""
        return self.worst[1] <= self.tolerance

    def sentence(self) -> str:
        """What is wrong, in words."""
        name, error = self.worst
        size = "is not finite" if error == float("inf") else f"is off by {error:.2g}"
        return (
            f"{name} {size} of its largest entry where {self.tolerance:.0e} is allowed "
            f"({self.check.label})"
        )


def folder() -> Path:
    """Where verdicts are kept."""
    return user_cache("selftest")


def facts(check: Check) -> dict[str, str]:
    """All that a verdict depends on, as far as it can be known."""
    return {"check": repr(check), **machine_facts(), "sources": sources_digest()}


def machine_facts() -> dict[str, str]:
    """Device, driver and versions of all that compiles."""
    here = jax.local_devices()[0]
    found = {
        "device": here.device_kind,
        "platform": getattr(here.client, "platform_version", ""),
        "flags": os.environ.get("XLA_FLAGS", ""),
        "ptxas": _ptxas(),
        "driver": _driver(),
        **_versions(),
    }
    return {name: str(fact) for name, fact in found.items()}


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if COMPILERS.fullmatch(name):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def _ptxas() -> str:
    """The assembler on the path, which XLA may take, as far as a look at the file says."""
    path = shutil.which("ptxas")
    if path is None:
        return "none"
    status = os.stat(path)
    return f"{os.path.realpath(path)} {status.st_size} {int(status.st_mtime)}"


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return "none"


@functools.cache
def sources_digest() -> str:
    """Digest of this package's files: kernels, tiles and the test itself."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted([*root.rglob("*.py"), root / "tiles.json"]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _path(known: dict[str, str]) -> Path:
    text = json.dumps(known, sort_keys=True)
    return folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def read(check: Check) -> Verdict | None:
    """What was found on a machine and with versions like these, or None."""
    known = facts(check)
    try:
        if not _path(known).is_file():  # a pipe in its place would be waited for
            return None
        stored: Any = json.loads(_path(known).read_text(encoding="utf-8"))
        if stored["facts"] != known or stored["sha256"] != _seal(stored):
            return None
        errors = {str(name): float(error) for name, error in stored["errors"].items()}
        verdict = Verdict(check, errors, float(stored["tolerance"]), float(stored["seconds"]))
        return verdict if errors else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _seal(stored: dict[str, Any]) -> str:
    """Digest of all that is kept: one wrong digit would pass a kernel that is off."""
    content = {name: value for name, value in stored.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write(verdict: Verdict) -> None:
    """Keep a verdict, whole or not at all."""
    known = facts(verdict.check)
    path = _path(known)
    found = {name: getattr(verdict, name) for name in ("errors", "tolerance", "seconds")}
    stored = {"facts": known, **found}
    text = json.dumps({**stored, "sha256": _seal(stored)}, indent=1)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:  # read-only or full: the next process tests anew
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
