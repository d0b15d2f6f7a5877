"""Devices of the tests: CPUs, as many as are asked for."""

import os

DRIVER = "/proc/driver/nvidia"


def xla_flags(devices: int) -> str:
    """XLA_FLAGS for so many CPU devices.

    Tests compile more than they compute, so LLVM optimizes nothing; but where there is a GPU it
    does, because the flag is one for both, and kernels are to be tested as they will run.
    """
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    if not os.path.exists(DRIVER):
        flags.append("--xla_backend_optimization_level=0")
    return " ".join(flags)
