"""Where the kernels can run, and the switch that lets them be traced elsewhere."""

import os

import jax

SWITCH = "CARVE_PALLAS"
MODES = ("gpu", "interpret", "compile")
OLDEST, NEWEST = (0, 10), (0, 12)
CAPABILITIES = (8.0, 8.6, 8.9, 9.0, 10.0, 12.0)  # those that the tiles are compiled for


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


def unsupported_reason() -> str | None:
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
    if capability() in CAPABILITIES:
        return None
    return (
        "the kernels are made for NVIDIA GPUs of compute capability "
        f"{', '.join(map(str, CAPABILITIES))}, and this {jax.devices()[0].device_kind} has "
        f"{capability() or 'none'}"
    )


def capability() -> float:
    """Compute capability of the GPU that kernels run on; an H100's where they are interpreted or
    only compiled; 0 for a GPU that has none."""
    if mode() != "gpu":
        return 9.0
    found = str(getattr(jax.devices()[0], "compute_capability", ""))  # "9.0"; ROCm has "gfx90a"
    return float(found) if found.replace(".", "").isdigit() else 0.0
