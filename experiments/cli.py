"""What all commands share: flags, configs with overrides, and errors told in one sentence."""

import errno
import functools
import inspect
import io
import itertools
import os
import re
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

import configs
from carve_jax.config import FORMER
from carve_jax.errors import UserError
from carve_jax.files import local_path, read_json, reason_of, shown
from carve_jax.training.processes.distributed import PeerLost
from carve_jax.training.processes.stopping import Interrupted, TrainingDiverged
from carve_jax.training.settings import OPTIONAL, from_json, nearest
from carve_jax.versions import warn_of_untested
from configs import base
from experiments.compile_cache import keep_compiled
from experiments.help_pages.page import render

USER_ERROR = UserError.exit_code
CONFIGS = Path(configs.__file__).parent
HELP = frozenset({"--help", "-h"})
MENDS = {
    errno.EDQUOT: "free some and run the same command again",
    errno.EMFILE: "allow more open files (ulimit -n), and run the same command again",
    errno.ENFILE: "close what holds files open, and run the same command again",
    errno.EACCES: "make it readable and writable, or give another path",
    errno.EROFS: "give a path that can be written",
    errno.EFBIG: "allow larger files (ulimit -f), or give another path",
    errno.ENAMETOOLONG: "give a shorter path",
}


NO_NUMBER = {
    r"invalid literal for int\(\)": "a whole number",
    "could not convert string to float": "a number",
}


class HelpAsked(Exception):
    """`--help` stands among a command's arguments.

    Args:
      page: makes the page of the docstring of the command's module.
    """

    def __init__(self, page: Callable[[str], str]) -> None:
        super().__init__()
        self.page = page


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a command with the process's arguments and exits with its code.

    What it compiles is kept for the next command (`experiments.compile_cache`).
    """
    sys.excepthook = sys.__excepthook__  # that of imports; from here on `call` tells of a stop
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal shows what it can; all else is UTF-8, whatever the machine's locale.
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    sys.unraisablehook = _report_unraisable
    warn_of_untested()
    if not HELP & set(sys.argv):
        keep_compiled()
    sys.exit(call(main, sys.argv))


def call(main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Runs a command; a user's mistake becomes `error: …` on stderr, and no traceback.

    Flags on `absl.flags.FLAGS` are parsed here; a command may keep its own instead. `--help` prints
    the docstring of the command's module, with the flags that `parse_flags` was given.

    Returns:
      0; 2 for a mistake, a full disk, or what else the system refuses of a file; 3 when training
      diverged; 75 when another process of the run is gone; 128 + the signal when stopped.
    """
    if HELP & set(argv):
        argv, main = argv[:1], functools.partial(_print_help, main)
    logging.set_verbosity(logging.FATAL)  # libraries log, with tracebacks, what they also raise
    try:
        main([argv[0], *flags.FLAGS(argv, known_only=True)[1:]])
        sys.stdout.flush()  # here, where a reader that has left can still be told
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except flags.Error as error:
        return _fail(_plain(str(error)), USER_ERROR)
    except (TrainingDiverged, PeerLost) as error:
        return _fail(str(error), error.exit_code)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        return _fail("stopped at once, nothing was saved by this stop", 130)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        return _fail(_of_system(error), USER_ERROR)
    except (RuntimeError, AssertionError):
        missing = _missing_platform()
        if missing is None:
            raise
        return _fail(missing, USER_ERROR)
    return 0


def _print_help(main: Callable[[list[str]], None], argv: list[str]) -> None:
    try:
        main([*argv, "--help"])
    except HelpAsked as asked:
        print(asked.page(inspect.getmodule(main).__doc__ or ""))


def _missing_platform() -> str | None:
    """Why JAX cannot run where JAX_PLATFORMS says, in a sentence; None where it can."""
    wanted = os.environ.get("JAX_PLATFORMS")
    if not wanted:
        return None
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        return (
            f"JAX_PLATFORMS={wanted}: JAX finds no such device here; unset it, or install what "
            "JAX needs for that device (pip install 'jax[cuda13]' for an NVIDIA GPU)"
        )
    return None


def _plain(message: str) -> str:
    """What absl says of a value, without Python's words for a text that is no number."""
    for theirs, ours in NO_NUMBER.items():
        message = re.sub(rf"{theirs}.*", f"give {ours}", message)
    return message


def _of_system(error: OSError) -> str:
    """What the system refused, on which file, and what to do."""
    if error.errno == errno.ENOSPC:
        return "no space left on the device: free some and run the same command again"
    where = f" ({shown(error.filename)})" if error.filename else ""
    mend = MENDS.get(error.errno or 0, "see to it, and run the same command again")
    return f"{reason_of(error)}{where}: {mend}"


def _report_unraisable(raised: "sys.UnraisableHookArgs") -> None:
    # When one write of a checkpoint fails, Orbax leaves the others to an event loop it has closed.
    if str(raised.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(raised)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def parse_flags(
    definitions: flags.FlagValues,
    argv: list[str],
    sections: tuple[str, ...] = (),
    fields: tuple[str, ...] = ("",),
) -> list[str]:
    """Parses a command's flags in place and returns the others, which are fields of these sections.

    Args:
      definitions: the flags.
      argv: the process's arguments.
      sections: that overrides may name, as `--section.KEY=VALUE`; the last is a training config's.
      fields: what the names of the fields that may be given begin with; of `--help` alone.

    Raises:
      UserError: an argument that is neither.
      flags.Error: a value that does not fit.
      HelpAsked: `--help` was given.
    """
    if HELP & set(argv):
        section = sections[-1] if sections else None
        raise HelpAsked(lambda docstring: render(docstring, definitions, section, fields))
    rest = definitions(argv, known_only=True)[1:]
    for before, argument in itertools.pairwise(["", *rest]):
        if not argument.startswith("-"):
            meant = f"{before}={argument}" if before.startswith("--") else "--name=value"
            raise UserError(f"unexpected argument {argument!r}: flags look like {meant}")
        if not sections or not re.match(rf"--?(?:no)?(?:{'|'.join(sections)})\.", argument):
            name = argument.lstrip("-").split("=")[0]
            if "config" not in definitions:
                hint = nearest(name, list(definitions))
            elif sections and name.split(".")[0] in base.get_config():
                hint = f"did you mean --{sections[-1]}.{name}?"
            else:
                hint = nearest(name, list(definitions))
                hint += "; a config's fields are --config.NAME=VALUE"
            raise UserError(f"unknown flag --{name}; {hint}")
    return rest


def require(value: str | None, flag: str, what: str) -> str:
    """The value of a flag that must be given."""
    if not value:
        raise UserError(f"--{flag} is missing: give {what}")
    return value


def known_names(flag: str, given: list[str], allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The names that a flag lists, as given.

    Raises:
      UserError: none, or one that is not allowed.
    """
    if not given:
        raise UserError(f"--{flag} is empty; allowed are {', '.join(allowed)}")
    for name in given:
        if name not in allowed:
            raise UserError(f"--{flag}: unknown {name!r}; {nearest(name, allowed)}")
    return tuple(given)


def directory_of(value: str | None, flag: str, what: str) -> Path:
    """The directory of a flag that must be given, which need not be there; `~` is expanded.

    Raises:
      UserError: it is missing, or no path of this machine.
    """
    return local_path(require(value, flag, what), f"--{flag}")


def checkpoint_step(value: str | None) -> int | Literal["best"] | None:
    """What --step names: a number, "best", or None for the newest.

    Raises:
      UserError: anything else.
    """
    if value is None:
        return None
    if value == "best":
        return "best"
    if not value.isdecimal():
        raise UserError(f"--step={value!r}: give the number of a checkpoint's step, or best")
    return int(value)


def load_config(path: str, overrides: list[str], flag: str = "config") -> ConfigDict:
    """The config of a file, with `--config.KEY=VALUE` applied and locked.

    Args:
      path: of a Python file with `get_config()`, or of the config.json of a run.
      overrides: flags.
      flag: that gave the path.

    Raises:
      UserError: no such file, a file that holds no config, or an override of an unknown field.
      flags.Error: a value of the wrong type.
    """
    return override(_run_config(path, f"--{flag}"), overrides)


def override(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """A config with `--config.KEY=VALUE` applied and locked; `=None` unsets an optional field.

    Raises:
      UserError: an override of an unknown field.
      flags.Error: a value of the wrong type.
    """
    unset: set[str] = set()
    kept: list[str] = []
    for argument in map(_as_now, overrides):
        match = re.match(r"--?(?:no)?config\.([\w.]+)(=None$)?", argument)
        if match is None:
            name = argument.lstrip("-").split("=")[0]
            raise UserError(f"unknown flag --{name}; a config's fields are --config.NAME=VALUE")
        check_field(config, match[1])
        if match[2] and match[1] in OPTIONAL:  # the library takes it for text
            unset.add(match[1])
        else:
            unset.discard(match[1])  # the last of a field counts
            kept.append(argument)
    values = flags.FlagValues()
    argv = ["", *kept]
    holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    values(argv)
    with holder.value.ignore_type():
        holder.value.update_from_flattened_dict(dict.fromkeys(unset))
    return holder.value


def _as_now(override: str) -> str:
    """An override that names a field where an earlier version had it, as it is named now."""
    match = re.match(r"(--?(?:no)?config\.model\.)(\w+)", override)
    if match is None or match[2] not in FORMER:
        return override
    print(f"config.model.{match[2]} is config.model.gates.{match[2]} now", file=sys.stderr)
    return f"{match[1]}gates.{override.removeprefix(match[1])}"


def _run_config(path: str, flag: str) -> ConfigDict:
    path = str(_installed(local_path(path, flag)))
    if not os.path.isfile(path):
        raise UserError(f"{flag}={path}: no such file; {_others(Path(path))}")
    try:
        if path.endswith(".json"):
            return from_json(read_json(Path(path)))
        names = runpy.run_path(path)
        config = names["get_config"]() if "get_config" in names else None
    except UserError as error:
        raise UserError(f"{flag}={error}") from error
    except Exception as error:  # the file is the user's, and may raise anything
        raise UserError(f"{flag}={path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{flag}={path}: it has no get_config() that returns an ml_collections.ConfigDict"
        )
    return config


def _others(path: Path) -> str:
    """The nearest of the project's configs where one was looked for, or all that are there."""
    ours = CONFIGS.resolve()
    looked = [each.resolve() for each in (path.parent, ours.parent / path.parent) if each.is_dir()]
    folder = next((each for each in looked if each.is_relative_to(ours)), ours)
    names = sorted(file.name for file in folder.glob("*.py") if file.stem[0] != "_")
    return f"{nearest(path.name, names)} ({folder.relative_to(ours.parent)})"


def _installed(path: Path) -> Path:
    """The path, or where it is not there and names one of the project's own configs, that one's."""
    own = CONFIGS.parent / path
    named = path.parts[:1] == (CONFIGS.name,) and not path.exists()
    return own if named and own.is_file() else path


def check_field(config: ConfigDict, dotted: str) -> None:
    """Raises UserError unless the config has the field of that dotted name."""
    section, known = config, "config"
    for name in dotted.split("."):
        if not isinstance(section, ConfigDict):
            raise UserError(f"--config.{dotted}: {known} is a value and has no fields")
        if name not in section:
            raise UserError(f"{known} has no field {name!r}; {nearest(name, section.keys())}")
        section, known = section[name], f"{known}.{name}"


def command_line(name: str, argv: list[str]) -> str:
    """The command that makes a record again, but for where the record goes."""
    kept = [argument for argument in argv[1:] if not argument.startswith("--output")]
    return " ".join([f"python -m experiments.{name}", *kept])


def results_folder() -> Path:
    """Where measurements go unless told: in a clone, beside those that are committed."""
    in_a_clone = (CONFIGS.parent / "pyproject.toml").exists()
    return Path(__file__).parent / "results" if in_a_clone else Path("results")


def usable_cores() -> int:
    """Cores that this process may use: as many processes as commands start unless told."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
