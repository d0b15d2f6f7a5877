"""How XLA compiles the programs of a run on CPUs: sooner, to steps as fast."""

import os

import jax
from jax.sharding import Mesh

CompilerOptions = dict[str, int | bool] | None
LEVEL, EMITTERS = "xla_backend_optimization_level", "xla_cpu_use_fusion_emitters"


def compiler_options(mesh: Mesh | None) -> CompilerOptions:
    """Options for `jax.jit`, by the devices that the program is for; None where XLA's own are best.

    On CPUs LLVM's higher levels take up to half of a step's compilation and do not make the step
    faster (figures: experiments/results/LOG.md).
    On GPUs the same option would slow the kernels down. What XLA_FLAGS names stays as it is there.

    Args:
      mesh: of devices, which need not be of this machine; None for JAX's default device.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    named = os.environ.get("XLA_FLAGS", "")
    if platform != "cpu" or LEVEL in named:
        return None
    options: dict[str, int | bool] = {LEVEL: 1}
    if jax.__version_info__ < (0, 11) and EMITTERS not in named:  # gone from XLA since
        options[EMITTERS] = False
    return options
