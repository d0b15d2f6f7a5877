"""Where the kernels can run, and the switch that lets them be traced elsewhere."""

import os

import jax

SWITCH = "CARVE_PALLAS"
MODES = ("gpu", "interpret", "compile")
OLDEST, NEWEST = (0, 10), (0, 12)
OLDEST_GPU = 8.0


def mode() -> str:
    """How kernels run: "gpu"; "interpret" on any device, slowly; "compile", traced for a GPU that
    need not be there. Read from the environment variable CARVE_PALLAS when a call is traced.

    Raises:
      ValueError: another word.
    """
    found = os.environ.get(SWITCH, "gpu")
    if found not in MODES:
        raise ValueError(f"{SWITCH}={found!r}; allowed are {', '.join(MODES)}: unset or change it")
    return found


def why_not() -> str | None:
    """Why the kernels cannot run on this machine, or None."""
    version = jax.__version_info__[:2]
    if not OLDEST <= version <= NEWEST:
        return (
            f"the kernels support JAX {'.'.join(map(str, OLDEST))} to "
            f"{'.'.join(map(str, NEWEST))}, and this is {jax.__version__}"
        )
    if mode() != "gpu":
        return None
    if jax.default_backend() != "gpu":
        return f"the kernels need an NVIDIA GPU, and JAX runs on {jax.default_backend()} here"
    device = jax.devices()[0]
    capability = str(getattr(device, "compute_capability", ""))  # "9.0"; ROCm has "gfx90a"
    if capability.replace(".", "").isdigit() and float(capability) >= OLDEST_GPU:
        return None
    return (
        f"the kernels need an NVIDIA GPU of compute capability {OLDEST_GPU:g} or more, and this "
        f"{device.device_kind} has {capability or 'none'}"
    )
