"""What was measured, in a file, and what it depended on: not measured again while that is the same.

A result belongs to the checkpoint's seal, to the command's options, and to what the files that they
name hold: a file of the same name with another text is another setting.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from carve_jax.data.ruler.haystack import Haystack
from carve_jax.errors import UserError
from carve_jax.evaluation.evaluated_model import EvaluatedModel
from carve_jax.evaluation.tasks import Figure, Result
from carve_jax.files import (
    Each,
    Maybe,
    check_shape,
    digest_of,
    local_path,
    read_json,
    reason_of,
    try_lock,
    write_atomically,
)
from carve_jax.training.workdir import TOKENIZER

RESULTS = [
    {
        "task": str,
        "settings": Each(object),
        "metrics": Each({"value": float, "stderr": Maybe(float), "count": int}),
        "facts": Each(object),
    }
]
"""What the results in a file are, as `check_shape` takes them."""
LOCK_SECONDS = 60.0  # that another evaluation may take to write a result


class Record:
    """Results in a file, each with the settings it was measured with.

    Several evaluations of one run may add to it at once.

    Args:
      path: of the file; there may be one.
      facts: what is written beside the results.
      fresh: measure what was measured before; a file that does not read is then set aside.

    Raises:
      UserError: the file does not read.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], fresh: bool) -> None:
        self.path, self._facts = path, facts
        try:
            self._results = _read_results(path)
        except UserError:
            if not fresh:
                raise
            self._results = []
            path.replace(path.with_name(f"{path.name}.damaged"))
        # Those that --fresh need not do again.
        self._measured = [] if fresh else [_key(e) for e in self._results if _is_sealed(e)]

    def find(self, task: str, settings: Mapping[str, Any]) -> Result | None:
        """What was measured, unless it is to be measured again."""
        if (task, settings) not in self._measured:
            return None
        entry = next(
            old for old in self._results if _key(old) == (task, settings) and _is_sealed(old)
        )
        return Result(_figures(entry), entry["facts"])

    def add(
        self, task: str, settings: Mapping[str, Any], result: Result, seconds: float | None = None
    ) -> None:
        """Writes a result in place of an older one with the same settings.

        Raises:
          UserError: another process does not let go of the file.
        """
        entry = {
            "task": task,
            "metrics": {
                name: dataclasses.asdict(figure) for name, figure in result.metrics.items()
            },
            "settings": settings,
            "seconds": seconds,
            "facts": result.facts,
        }
        entry = json.loads(json.dumps(entry))
        entry["sha256"] = _seal(entry)
        with _alone(self.path):  # with what others have added since
            others = [old for old in _read_results(self.path) if _key(old) != (task, settings)]
            self._results = [*others, entry]
            record = {**self._facts, "results": self._results}
            text = json.dumps(record, indent=2, ensure_ascii=False)
            write_atomically(self.path, text.encode("utf-8", "replace") + b"\n")


def settings_of(
    values: flags.FlagValues, evaluated: EvaluatedModel, changes: Sequence[str]
) -> dict:
    """What a result depends on besides model and checkpoint, as JSON gives it back.

    Of files that the options name, what they hold counts, and not where they lie.
    """
    haystack = values.haystack
    if haystack is not None and Haystack.is_file(haystack):
        haystack = f"sha256 {digest_of([local_path(haystack, '--haystack')])}"
    tokenizer = values.tokenizer
    if tokenizer is not None and os.path.exists(file := os.path.expanduser(tokenizer)):
        tokenizer = f"sha256 {digest_of([file])}"
    include_path = [local_path(path, "--include_path") for path in values.include_path]
    return {
        "dtype": evaluated.model.config.compute_dtype,
        "max_length": evaluated.scorer.max_length,
        "changes": sorted(changes),
        "include_path": [f"sha256 {digest_of([path])}" for path in include_path],
        "haystack": haystack,
        "tokenizer": tokenizer,
        **{
            name: getattr(values, name)
            for name in ("limit", "num_fewshot", "input_tokens", "seed", "reply_tokens")
        },
    }


def settings_of_run(directory: Path, evaluated: EvaluatedModel) -> dict[str, str]:
    """What a result depends on in the run: parameters, tokenizer and held-out data.

    Token files are known by their headers, which hold the SHA-256 of the tokens.
    """
    data = evaluated.config.data
    named = [data.get("path"), *(data.get("paths") or ())]
    if data.get("tokenizer") not in (None, "bytes", "bpe"):
        named.append(data.tokenizer)
    found: list[Path] = []
    for path in (Path(name).expanduser() for name in named if name):
        found += sorted(path.glob("*.json")) if path.is_dir() else [path]
    python = platform.python_version() if data.get("source") == "stdlib" else ""
    return {
        "parameters": evaluated.seal,
        "run_tokenizer": digest_of([directory / TOKENIZER]),
        "data": f"{digest_of(found)} {python}".strip(),
    }


def last_figures(path: Path) -> dict[str, dict[str, float]]:
    """The values of a file by task and metric, of the last settings that a task was measured with;
    of all its examples, not of a `limit` of them.

    Raises:
      UserError: the file does not read.
    """
    return {
        entry["task"]: {name: figure.value for name, figure in _figures(entry).items()}
        for entry in _read_results(path)
        if _is_sealed(entry) and entry["settings"].get("limit") is None
    }


def _read_results(path: Path) -> list[dict[str, Any]]:
    mend = "restore it, or measure again with --fresh, which sets it aside"
    try:
        results = read_json(path, mend=mend).get("results", [])
    except FileNotFoundError:
        return []
    try:
        check_shape(results, RESULTS)
    except ValueError as error:
        reason = f"results{reason_of(error)}"
        raise UserError(f"{path} cannot be read ({reason}): {mend}") from error
    return results


def _is_sealed(entry: Mapping[str, Any]) -> bool:
    """Whether a result is as it was written; one that is not, or does not say, is measured anew."""
    return entry.get("sha256") == _seal(entry)


def _seal(entry: Mapping[str, Any]) -> str:
    """Digest of a result, which is a figure that nobody measures again."""
    content = {name: value for name, value in entry.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _figures(entry: Mapping[str, Any]) -> dict[str, Figure]:
    return {
        name: Figure(figure["value"], figure.get("stderr"), figure["count"])
        for name, figure in entry["metrics"].items()
    }


def _key(entry: Mapping[str, Any]) -> tuple[str, Any]:
    return entry["task"], entry["settings"]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = path.with_name(".evaluation.lock")
    end = time.monotonic() + LOCK_SECONDS
    while (file := try_lock(lock)) is None:
        if time.monotonic() > end:
            raise UserError(f"{path} is being written by another process: wait for its end")
        time.sleep(0.05)
    with file:
        yield
