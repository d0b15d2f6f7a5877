"""The tasks that ask whether the kernels are right on this card."""

import importlib.util
import os
import subprocess
import sys
from typing import Any

from experiments.measuring.timing import LeftOut
from experiments.rented_gpu.record import ROOT
from experiments.rented_gpu.worker import Progress
from pallas_kernels import guard

LONGEST_MESSAGE = 500


def selftest(progress: Progress) -> dict[str, Any]:
    """The kernels' own self-test, the most used tiles."""
    command = [sys.executable, "-m", "pallas_kernels.selftest", "--quick"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    print("\n".join(lines), flush=True)
    if done.returncode not in (0, 1):
        raise LeftOut(lines[-1] if lines else f"it ended with code {done.returncode}")
    return {"passed": done.returncode == 0, "said": lines}


class Recorder:
    """A plugin for pytest that saves each test's outcome as it comes."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.outcomes: dict[str, str] = dict((progress.earlier or {}).get("outcomes", {}))
        self.failures: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called for the setup, the call and the teardown of each test."""
        if report.when != "call" and report.passed:
            return
        self.outcomes[report.nodeid] = report.outcome
        if report.failed:
            self.failures[report.nodeid] = str(report.longrepr)[-LONGEST_MESSAGE:]
        self._progress.save(self.figures())

    def figures(self) -> dict[str, Any]:
        """The figures of the tests, the counts first."""
        values = list(self.outcomes.values())
        counts = {name: values.count(name) for name in ("passed", "failed", "skipped")}
        return {**counts, "failures": self.failures, "outcomes": self.outcomes}


def kernel_tests(
    progress: Progress, paths: list[str], processes: int, test_seconds: int = 60
) -> dict[str, Any]:
    """Tests marked `gpu`: every shipped tile and dtype against float64, side by side.

    What an earlier run saw pass is not run again. A test that hangs, in a compiler say, ends its
    process after `test_seconds`, and pytest-xdist goes on with another; without pytest-xdist they
    run one after the other and such a test ends the task.
    """
    try:
        import _pytest.faulthandler
        import pytest
    except ImportError:
        raise LeftOut("not installed (pytest): pip install -e '.[dev]'") from None
    missing = [path for path in paths if not (ROOT / path).exists()]
    if missing:
        raise LeftOut(f"{', '.join(missing)} is not here: run it from a checkout")
    os.environ[guard.SWITCH] = "off"  # each test compares with float64
    os.chdir(ROOT)
    recorder = Recorder(progress)
    # A name that ends a parameter's bracket begins no other name, which --deselect would take too.
    passed = [n for n, seen in recorder.outcomes.items() if seen == "passed" and n.endswith("]")]
    recorder.outcomes = dict.fromkeys(passed, "passed")
    # What this process has imported already keeps its plain assertions, and is none of the tests.
    # pytest-benchmark, where it is installed, warns of pytest-xdist, and warnings are errors.
    options = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options += ["-q", "--tb=short", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    options += ["-o", f"faulthandler_timeout={test_seconds}"]
    if importlib.util.find_spec("xdist") is not None:
        # One test at a time in the order of the files: the most used tiles first.
        options += [f"--numprocesses={processes}", "--dist=load", "--maxschedchunk=1"]
    if hasattr(_pytest.faulthandler, "get_exit_on_timeout_config_value"):  # pytest from 9 on
        options += ["-o", "faulthandler_exit_on_timeout=true"]
    options += [f"--deselect={name}" for name in passed]
    code = pytest.main([*options, *paths], plugins=[recorder])
    if code not in (0, 1) and not (code == 5 and passed):  # 5: nothing was left to run
        raise RuntimeError(f"pytest ended with code {int(code)}")
    return recorder.figures()
