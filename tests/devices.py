"""Devices of the tests: CPUs, as many as are asked for, and compilers in haste."""

import importlib.metadata
import os

from packaging.version import Version

DRIVER = "/proc/driver/nvidia"
# XLA ends the process at a flag that it does not know: these are of jaxlib 0.10. Without MLIR's
# fusion emitters the interpreted kernels compile in half the time.
OF_0_10 = (
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_llvm_disable_expensive_passes=true",
)


def xla_flags(devices: int) -> str:
    """XLA_FLAGS for so many CPU devices.

    Tests compile more than they compute, so LLVM optimizes nothing; but where there is a GPU it
    does, because the flag is one for both, and kernels are to be tested as they will run.
    """
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    if not os.path.exists(DRIVER):
        flags.append("--xla_backend_optimization_level=0")
        if Version(importlib.metadata.version("jaxlib")) < Version("0.11"):
            flags += OF_0_10
    return " ".join(flags)


def pool_threads() -> int | None:
    """Threads for XLA's pool (its variable NPROC), or None for as many as there are cores.

    Mosaic GPU's interpreter keeps one for each warpgroup that waits: of two, none was left to
    compute what they waited for.
    """
    return 8 if Version(importlib.metadata.version("jaxlib")) >= Version("0.11") else None
