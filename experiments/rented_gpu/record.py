"""The file of results: one for each commit, card and JAX, written anew at every result."""

import json
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from carve_jax.errors import UserError
from carve_jax.files import (
    Each,
    Maybe,
    check_shape,
    digest_of,
    open_regular,
    read_json,
    reason_of,
    told,
    write_atomically,
)

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("carve_jax", "configs", "experiments", "pallas_kernels")
NOT_BEGUN = {"state": "not begun", "why": "no time yet, or not asked for"}
COMPILED = "compile/"  # names of tasks whose result is in the cache of compiled programs
SHAPE = {
    "runs": [Each(object)],
    "tasks": Each({"state": str, "why": Maybe(str)}),
}
"""What a file of results holds, as `check_shape` takes it."""
ANEW = "remove it, and all is measured anew"
MARK = 64  # bytes of a cache's mark
STATES = ("done", "stopped", "failed", "left out")


def code_name(commit: str | None, uncommitted_changes: bool) -> str:
    """What identifies the code: its commit, with a digest of the sources if they are not it."""
    name = (commit or "no-commit")[:12]
    if commit and not uncommitted_changes:
        return name
    files = [path for room in SOURCES for path in sorted((ROOT / room).rglob("*.py"))]
    tables = sorted((ROOT / "pallas_kernels").rglob("*.json"))
    return f"{name}-{digest_of([*files, *tables])[:8]}"


class Record:
    """Results by task, and what they depend on.

    Args:
      folder: where the file is, or will be.
      facts: of the machine and code, as `describe_environment` gives them.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        code = code_name(facts["commit"], facts["uncommitted_changes"])
        self.card = facts["devices"][0]
        card = re.sub(r"[^A-Za-z0-9]+", "-", self.card).strip("-")
        self.path = folder / f"{code}_{card}_jax-{facts['versions']['jax']}.json"
        try:
            self._all = read_json(self.path, mend=ANEW)
            check_shape(self._all, SHAPE)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{self.path} cannot be read ({reason_of(error)}): {ANEW}") from error
        except FileNotFoundError:
            self._all = {"runs": [], "missing": {}, "tasks": {}}
        self._all = {"code": code, "card": self.card, **self._all}
        self._all["runs"].append(facts)

    @property
    def tasks(self) -> dict[str, Any]:
        """The tasks by name: "state", "seconds", "why" unless it is done, and "figures"."""
        return self._all["tasks"]

    def done(self, name: str) -> bool:
        """Whether a task has ended well."""
        return self.tasks.get(name, {}).get("state") == "done"

    def figures(self, name: str) -> Any | None:
        """What a task has found, even if it did not end."""
        return self.tasks.get(name, {}).get("figures")

    def keep(self, name: str, figures: Any) -> None:
        """Saves what a task has found so far."""
        entry = self.tasks.setdefault(name, {"state": "stopped", "why": "the run ended under it"})
        entry["figures"] = figures
        self._save()

    def end(self, name: str, state: str, seconds: float, why: str = "") -> None:
        """Saves how a task ended; what it has found stays."""
        assert state in STATES
        figures = {"figures": self.tasks[name]["figures"]} if self.figures(name) is not None else {}
        reason = {"why": why} if why else {}
        self.tasks[name] = {"state": state, "seconds": round(seconds, 2), **reason, **figures}
        self._save()

    def use_cache(self, cache: Path) -> None:
        """Forgets what was compiled into another cache than this one, such as another machine's."""
        mark = cache / "carve_jax_cache_id"
        cache.mkdir(parents=True, exist_ok=True)
        if not mark.exists():
            write_atomically(mark, uuid.uuid4().hex)
        with told(mark, "remove it, and all is compiled anew"), open_regular(mark) as file:
            name = file.read(MARK).decode("utf-8")
        if self._all.get("cache") != name:
            self._all["tasks"] = {
                name: entry for name, entry in self.tasks.items() if not name.startswith(COMPILED)
            }
        self._all["cache"] = name

    def close(self, names: list[str], summary: dict[str, Any]) -> dict[str, str]:
        """Saves what is missing of these tasks and why, and the summary; returns the former."""
        missing = {
            name: f"{entry['state']}: {entry.get('why', '')}"
            for name in names
            if (entry := self.tasks.get(name, NOT_BEGUN))["state"] != "done"
        }
        self._all.update(missing=missing, summary=summary)
        self._all["runs"][-1]["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
        self._save()
        return missing

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        order = ("code", "card", "missing", "summary", "runs", "cache", "tasks")
        ordered = {key: self._all[key] for key in order if key in self._all}
        write_atomically(self.path, json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
