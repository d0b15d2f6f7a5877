"""Compiling for GPUs that are not there.

Nothing runs. It needs JAX's GPU plugin, whose version is that of jaxlib, and no GPU; on a machine
without one, JAX_PLATFORMS=cpu keeps JAX from looking for it.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from carve_jax.errors import UserError
from experiments.planning.chips import CHIPS, MACHINE, Chip, target_config

KIND = CHIPS["h100"].kind

Place = Callable[[Any], Any]


def on_device(place: Any) -> Place:
    """A function that puts shapes where a program is compiled for: on this device."""
    sharding = SingleDeviceSharding(place)

    def put(tree: Any) -> Any:
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    return put


def absent_h100() -> Place:
    """An H100 that need not be there.

    Raises:
      UserError: JAX's GPU plugin is not installed.
    """
    return on_device(absent_devices(CHIPS["h100"], 1)[0])


def absent_devices(chip: Chip, count: int) -> Sequence[Any]:
    """`count` chips that need not be there, in machines of eight.

    Raises:
      UserError: JAX's GPU plugin is not installed, or the machines would not be full.
    """
    if count > MACHINE and count % MACHINE:
        raise UserError(
            f"--chips={count} does not fill machines of {MACHINE}: give up to {MACHINE}, or a "
            f"multiple of {MACHINE}"
        )
    machines = -(-count // MACHINE)
    try:
        found = topologies.get_topology_desc(
            platform="cuda",
            target_config=target_config(chip),
            topology=f"1x{machines}x{count // machines}",
        )
    except NotImplementedError as error:
        version = jax.__version__
        raise UserError(
            "compiling for a GPU needs JAX's GPU plugin, which is not installed: "
            f"pip install -e '.[aot]', or pip install jax-cuda13-plugin=={version} "
            f"jax-cuda13-pjrt=={version} nvidia-nvvm nvidia-cuda-nvcc"
        ) from error
    return found.devices


def traced_for_gpu(kind: str = KIND) -> contextlib.AbstractContextManager[Any]:
    """Under it kernels lower for the absent GPU; before JAX 0.11 the shapes say so themselves."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)
