"""Commands, `carve-jax NAME` or from the root `python -m experiments.NAME`, and their wings.

No command imports another.

    __main__.py      the command `carve-jax`, which runs the others from any folder
    cli.py           what all commands share: flags, configs, errors in one sentence
    help_pages/      what `--help` prints: flags, a config's fields, examples
    measuring/       fair timing, calls of the rule, its floors, memory, time by kernel
    benchmarks/      the suites of `benchmark`, the tile search included
    peers/           other projects' kernels as contenders
    planning/        what a model or a run needs and costs, compiled for GPUs that are not there
    preparation/     from text to token files
    sweeps/          the runs of `sweep`: planned, stored, taken to their end
    reporting/       what a sweep shows: statistics, figures, Markdown and HTML
    claims/          the paper's claims, a file each, judged by the committed results
    evaluating/      the tasks of `evaluate` and the record of their results
    generating/      text and saved states of `generate`
    fault_injection/ the kills of `faults` and what is compared after them
    theory/          the paper's claims as experiments, a command of its own
    rented_gpu/      nine minutes on a rented GPU, a command of its own
    launch/, notebooks/, results/   scripts for clusters, a notebook, dated records

Which wing may import which is drawn in tests/test_imports.py.
"""

import os
import sys
from types import TracebackType


def _at_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a command is still importing is no bug to be shown a traceback of."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        sys.__excepthook__(kind, error, trace)
        return
    print("error: stopped at once, nothing was saved by this stop", file=sys.stderr, flush=True)
    os._exit(130)


# Only where a command of ours is starting: `python -m` has not named its file yet, carve-jax has.
if sys.argv[0] == "-m" or os.path.basename(sys.argv[0]) == "carve-jax":
    sys.excepthook = _at_once
