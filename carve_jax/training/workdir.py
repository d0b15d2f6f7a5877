"""A run's directory: held against other runs, with the config and the tokenizer in it."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from carve_jax.data import Tokenizer, tokenizer_from_json
from carve_jax.data.token_files.shard_header import sha256
from carve_jax.errors import UserError
from carve_jax.files import (
    held,
    local_path,
    made_directory,
    read_json,
    read_text,
    write_atomically,
)
from carve_jax.training.processes.messages import Say, is_first, require_shared, together
from carve_jax.training.reports import metrics
from carve_jax.training.settings import as_now, differences, flatten, from_json

FILE_NAME = "config.json"
TOKENIZER = "tokenizer.json"
CHECKPOINTS = "checkpoints"  # the folder
LOCK = ".lock"
"""Locked as long as a process trains there."""


@contextlib.contextmanager
def alone(workdir: Path, say: Say) -> Iterator[None]:
    """Holds the run directory, which is made, against every other run.

    Raises:
      UserError: it cannot be made, or another run has it.
    """
    with contextlib.ExitStack() as stack:
        with together():
            if is_first():
                make_workdir(workdir)
                try:
                    stack.enter_context(held(workdir / LOCK, str(workdir), say=say))
                except OSError as error:
                    raise UserError(
                        f"--workdir {workdir} cannot be written ({error.strerror}): give another"
                    ) from error
        yield


def claim(workdir: Path, config: Mapping[str, Any], tokenizer: Tokenizer | None, say: Say) -> None:
    """The first process makes the directory this run's; the others see that they share it.

    Args:
      workdir: the directory.
      config: of the run, as plain values.
      tokenizer: of its data; None where it has none.
      say: takes one line for the user.

    Raises:
      UserError: another config's directory, or one of this machine alone.
    """
    with together():
        if is_first():
            claim_workdir(workdir, config, say=say)
            save_tokenizer(workdir, tokenizer)
    require_shared(workdir)


def claim_workdir(
    workdir: Path, config: Mapping[str, Any], *, say: Callable[[str], None] = lambda line: None
) -> None:
    """Makes the run directory this config's: writes config.json, or checks the one there.

    A run that left neither a figure nor a checkpoint has nothing to lose, and gives way.

    Args:
      workdir: the directory, which is made if missing.
      config: of the run, as plain values.
      say: takes one line for the user where it does.

    Raises:
      UserError: the directory belongs to another config; every differing field is named.
    """
    make_workdir(workdir)
    if (workdir / FILE_NAME).exists():
        differing = differences(flatten(load_config(workdir)), flatten(config))
        if differing and _has_begun(workdir):
            raise UserError(
                f"{workdir} belongs to a run of another config: {'; '.join(differing)}; give "
                "another --workdir, or these values"
            )
        if differing:
            say(
                f"{workdir} held a run that never took a step, of another config: "
                f"{'; '.join(differing)}; it has this config now"
            )
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_atomically(workdir / FILE_NAME, text)


def _has_begun(workdir: Path) -> bool:
    """Whether a run has left figures or checkpoints, whole or not."""
    figures, checkpoints = workdir / metrics.FILE_NAME, workdir / CHECKPOINTS
    if figures.exists() and figures.stat().st_size > 0:
        return True
    return checkpoints.exists() and any(checkpoints.iterdir())


def make_workdir(workdir: Path) -> None:
    """Makes a run directory unless it is there.

    Raises:
      UserError: it cannot be made or written, or begins with `~`, which commands expand.
    """
    path = local_path(workdir, "--workdir")
    if path != workdir:
        raise UserError(f"--workdir={workdir}: only commands expand ~: give {path}")
    made_directory(path, "--workdir")


def load_config(workdir: Path) -> ConfigDict:
    """The resolved config of a run directory.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    path = workdir / FILE_NAME
    try:
        return from_json(read_json(path, mend="restore it, or start again in an empty --workdir"))
    except FileNotFoundError:
        raise UserError(
            f"{workdir} holds no run ({FILE_NAME} is missing): train first, or correct --workdir"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:  # of ConfigDict: odd names
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read ({error}): restore it") from error


def require_config_of(meta: Mapping[str, Any], config: Mapping[str, Any], workdir: Path) -> None:
    """Raises UserError unless a checkpoint was trained by this config, which is a directory's.

    Fields that leave parameters and data as they would be may differ.
    """
    trained = meta.get("config")
    if not isinstance(trained, dict):
        return  # of a checkpoint that does not say
    differing = differences(flatten(as_now(trained)), flatten(config))
    if differing:
        raise UserError(
            f"the config of {workdir} is not the one that its checkpoint of step {meta['step']} "
            f"was trained with ({FILE_NAME} is here, the checkpoint there): "
            f"{'; '.join(differing)}; restore {FILE_NAME} from a copy"
        )


def save_tokenizer(workdir: Path, tokenizer: Tokenizer | None) -> None:
    """Leaves the tokenizer beside the checkpoints, so that a prompt needs no data set.

    Without one, none stays there of a run that never began.
    """
    if tokenizer is None:
        (workdir / TOKENIZER).unlink(missing_ok=True)
    else:
        write_atomically(workdir / TOKENIZER, tokenizer.to_json())


def load_tokenizer(workdir: Path, expected_sha256: str | None = None) -> Tokenizer:
    """The tokenizer of a run directory.

    Args:
      workdir: the directory.
      expected_sha256: of the JSON, as the checkpoint says; None where it does not.

    Raises:
      UserError: its data has none (a synthetic task), or it is not the one it was trained with.
    """
    path = workdir / TOKENIZER
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise UserError(f"{workdir} was not trained on text: it has no {TOKENIZER}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it from a copy") from error
    if expected_sha256 not in (None, sha256(text)):
        raise UserError(
            f"{path} is not the tokenizer that the checkpoint was trained with: restore it from a "
            "copy"
        )
    return tokenizer_from_json(text)
