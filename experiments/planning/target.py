"""Where a run is planned for: chips, their mesh, and what stands for them while it compiles."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jax
from ml_collections import ConfigDict

from carve_jax.errors import UserError
from carve_jax.sharding import AXES, make_mesh
from carve_jax.training.settings import nearest
from experiments.planning.ahead_of_time import absent_devices, traced_for_gpu
from experiments.planning.chips import CHIPS, Chip, find_chip
from pallas_kernels import device

HOW = ("gpu", "cpu", "no")


class Target(NamedTuple):
    """Where a run is planned for.

    Attributes:
      how: "gpu", "cpu" or "no": what the step is compiled for.
      devices: that it is compiled for; None where it is not.
    """

    name: str
    chip: Chip
    chips: int
    how: str
    devices: Any

    @property
    def compiled_for(self) -> str | None:
        """The kind of device that the program is for; None where nothing compiles."""
        if self.how == "gpu":
            return CHIPS[self.chip.compiles_as].kind
        return "this machine's CPU" if self.how == "cpu" else None


def find_target(name: str, chips: int, how: str) -> Target:
    """The chips, and devices to compile for.

    Raises:
      UserError: an unknown chip, no chips, or nothing to compile with.
    """
    chip = find_chip(name)
    if chips < 1:
        raise UserError(f"--chips={chips}: there must be one at least")
    devices = None
    if how == "gpu":
        devices = absent_devices(CHIPS[chip.compiles_as], chips)
    elif how == "cpu":
        devices = jax.devices("cpu")[:chips]
        if len(devices) < chips:
            raise UserError(
                f"--compile=cpu needs {chips} CPU devices and there are {len(devices)}: set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={chips}, or --compile=no"
            )
    return Target(name, chip, chips, how, devices)


def mesh_sizes(text: str | None, config: ConfigDict, chips: int) -> dict[str, int]:
    """Sizes of all axes: those of the flag, else the config's, else fsdp over all chips.

    Raises:
      UserError: an unknown axis, no sizes, or sizes that do not make up the chips.
    """
    given = {axis: config.mesh.get(axis, 1) for axis in AXES}
    if text:
        given = dict.fromkeys(AXES, 1)
        for part in text.split(","):
            axis, _, size = part.partition("=")
            if axis not in AXES:
                raise UserError(f"--mesh has no axis {axis!r}; {nearest(axis, AXES)}")
            if not size.removeprefix("-").isdigit():
                raise UserError(f"--mesh={text}: give sizes as --mesh=fsdp=4,tensor=2")
            given[axis] = int(size)
    elif set(given.values()) == {1}:
        given["fsdp"] = chips
    try:
        # The positions of a grid stand for devices: sizes are told by the rule that makes meshes.
        return dict(make_mesh(given, cast(Any, range(chips))).shape)
    except ValueError as error:
        raise UserError(f"--mesh: {error}") from error


@contextlib.contextmanager
def kernels_for(target: Target) -> Iterator[None]:
    """Under it kernels are traced for the target's GPU; on the CPU there are none."""
    if target.how == "cpu":
        yield
        return
    before = os.environ.get(device.SWITCH)
    os.environ[device.SWITCH] = "compile"
    try:
        yield
    finally:
        os.environ.pop(device.SWITCH)
        if before is not None:
            os.environ[device.SWITCH] = before


def traced_for(target: Target) -> contextlib.AbstractContextManager[Any]:
    """Under it shapes are traced as on the target's devices."""
    return contextlib.nullcontext() if target.how == "cpu" else traced_for_gpu()
