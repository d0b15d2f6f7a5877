"""The process of one task: python -m experiments.rented_gpu.worker CALL ARGUMENTS FIGURES SECONDS.

CALL is "module:function", ARGUMENTS its keyword arguments in JSON, FIGURES the file that takes what
it returns. The function's first argument is its `Progress`. It exits with LEFT_OUT, and the reason
as its last line, where there is nothing to do here, such as a package that is not installed. The
schedule stops it in time; after SECONDS it ends even if the schedule is gone.
"""

import importlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

from carve_jax.errors import UserError
from carve_jax.files import write_atomically
from experiments.measuring.timing import LeftOut

LEFT_OUT = 3


class Progress:
    """What a task has found so far.

    Attributes:
      earlier: what an earlier run of the task, which did not end, had saved; None if nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.earlier: Any = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def save(self, figures: Any) -> None:
        """Keeps figures even if the task is stopped later."""
        write_atomically(self._path, json.dumps(figures))


def main(call: str, arguments: str, path: str, seconds: str) -> int:
    """Runs the function and saves what it returns."""
    signal.alarm(int(seconds))  # no handler: the system ends the process wherever it is
    module, function = call.split(":")
    progress = Progress(Path(path))
    try:
        figures = getattr(importlib.import_module(module), function)(
            progress, **json.loads(arguments)
        )
    except (LeftOut, UserError) as reason:
        print(" ".join(str(reason).split()), flush=True)
        return LEFT_OUT
    if figures is not None:
        progress.save(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
