"""Before kernels are first used on a GPU in a process: do they compute the rule on this machine?

A check of `selftest.py` for kernels like those of the call (dtype, rule, widths, tiles), run once:
its verdict is kept for the process and, by `verdicts.py`, for later ones. It compiles two small
programs, as `selftest.py` says, and takes the seconds that takes. CARVE_SELFTEST=off leaves it out;
so does the test suite, which compares kernels itself.
"""

import os
import threading

from pallas_kernels import device, selftest, verdicts
from pallas_kernels.call import Request
from pallas_kernels.verdicts import Check, Verdict

SWITCH = "CARVE_SELFTEST"
WAY_OUT = (
    "update JAX and its CUDA packages, see the whole table with `python -m "
    f"pallas_kernels.selftest`, or set {SWITCH}=off to take these kernels all the same"
)

_reasons: dict[Check, str | None] = {}
_lock = threading.Lock()


def switched_on() -> bool:
    """Whether CARVE_SELFTEST asks for the guard, as it does by default.

    Raises:
      ValueError: another word than on or off.
    """
    word = os.environ.get(SWITCH, "on")
    if word not in ("on", "off"):
        raise ValueError(f"{SWITCH}={word!r}; allowed are on, off: unset or change it")
    return word == "on"


def distrusted_reason(backend: str, request: Request) -> str | None:
    """Why a backend's kernels would give wrong numbers in such calls on this GPU, or None.

    Asks nothing where kernels are interpreted or only compiled, or sizes are unknown. May be called
    while a program is traced.

    Raises:
      ValueError: CARVE_SELFTEST is neither on nor off.
    """
    if not switched_on() or not _on_gpu() or request.sizes is None:
        return None
    check = selftest.check_of(backend, request)
    with _lock:
        if check not in _reasons:
            _reasons[check] = _find_reason(check)
        return _reasons[check]


def _on_gpu() -> bool:
    return device.mode() == "gpu"


def _find_reason(check: Check) -> str | None:
    verdict = verdicts.read(check)
    if verdict is None:
        try:
            verdict = _run_apart(check)
        except Exception as error:  # whatever it is, these kernels did not pass: a reason, not kept
            first = (str(error).splitlines() or [""])[0]
            return f"its self-test did not run ({type(error).__name__}: {first}); {WAY_OUT}"
        verdicts.write(verdict)
    if verdict.passed:
        return None
    return (
        f"its kernels failed their self-test on this GPU: {verdict.sentence()}; "
        f"{selftest.KNOWN}; {WAY_OUT}"
    )


def _run_apart(check: Check) -> Verdict:
    """The check in a thread of its own: traces, meshes and settings of the caller stay there."""
    found: list[Verdict | BaseException] = []

    def run() -> None:
        try:
            found.append(selftest.run_check(check))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, name="pallas_kernels.selftest")
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]
