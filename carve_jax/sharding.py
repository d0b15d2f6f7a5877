"""How a model lies on a mesh of devices: one file of names and rules.

A mesh has the axes `data` (rows of the batch), `fsdp` (rows too; parameters and optimizer
moments are kept in parts and gathered when they are used), `tensor` (heads and MLP) and
`sequence` (the tokens of a row). Arrays are described by logical axes, which `RULES` puts on
axes of the mesh. Nothing here has an effect unless a mesh with these axes is set
(`jax.set_mesh`), so modules may call it anywhere.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from carve_jax.shapes import Array

AXES = ("data", "fsdp", "tensor", "sequence")

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("sequence",),  # tokens of a row
    "embed": ("fsdp",),  # width of the residual stream, in parameters
    "heads": ("tensor",),  # value or query heads, or heads times channels
    "key_heads": ("tensor",),
    "gate_heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}
"""The axes of the mesh for each logical axis; None stands for an axis that is never cut."""

Axes = tuple[str | None, ...]

PARAMETERS: Mapping[str, Mapping[str, Axes]] = {
    "mlp": {
        "gate_proj": ("embed", "mlp"),
        "up_proj": ("embed", "mlp"),
        "down_proj": ("mlp", "embed"),
    },
    "model": {
        "embed": ("vocab", "embed"),
        "head": ("embed", "vocab"),
        **dict.fromkeys(("mixer_norm", "mlp_norm", "final_norm"), (None,)),
    },
}
"""Logical axes of every parameter outside the mixers, each of which names those of its own."""


def spec(*axes: str | None, replicated: frozenset[str] = frozenset()) -> PartitionSpec:
    """Where an array with these logical axes lies; those in `replicated` are cut nowhere.

    Raises:
      ValueError: an unknown logical axis.
    """
    unknown = [axis for axis in (*axes, *replicated) if axis is not None and axis not in RULES]
    if unknown:
        raise ValueError(f"unknown logical axis {unknown[0]!r}; there are {', '.join(RULES)}.")
    return PartitionSpec(
        *(None if axis is None or axis in replicated else RULES[axis] for axis in axes)
    )


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of these sizes, −1 being whatever the devices leave.

    Args:
      sizes: of some of `AXES`; the others are 1.
      devices: all by default; each is used.

    Raises:
      ValueError: an unknown axis, a size that is no size, or sizes that do not make up the devices.
    """
    devices = jax.devices() if devices is None else devices
    given = {axis: sizes.get(axis, 1) for axis in AXES}
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"mesh has no axis {unknown[0]!r}; there are {', '.join(AXES)}.")
    free = [axis for axis, size in given.items() if size == -1]
    fixed = math.prod(size for size in given.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in given.values()):
        raise ValueError(f"mesh={given}: sizes are 1 or more, and one of them may be -1.")
    if free and len(devices) % fixed == 0:
        given[free[0]] = len(devices) // fixed
    if math.prod(given.values()) != len(devices):
        raise ValueError(
            f"mesh={given} does not make up the {len(devices)} devices there are; "
            f"choose sizes whose product is {len(devices)}, or give one as -1."
        )
    grid = np.asarray(devices).reshape(tuple(given.values()))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def row_share(devices: np.ndarray, process: int) -> tuple[int, int]:
    """Which share of a batch's rows the devices of a process hold, and of how many equal shares.

    Processes whose devices differ along `tensor` or `sequence` alone hold the same rows.

    Args:
      devices: of a mesh, in the shape of `AXES`.
      process: its index.

    Raises:
      ValueError: the shares of the processes are not equal, or overlap in part.
    """
    rows = devices.reshape(devices.shape[0] * devices.shape[1], -1)
    held: dict[int, set[int]] = {}
    for row, members in enumerate(rows):
        for device in members:
            held.setdefault(device.process_index, set()).add(row)
    size = len(held[process])
    for group in held.values():
        start = min(group) - min(group) % size
        if group != set(range(start, start + size)):
            raise ValueError(
                f"the processes' devices would hold unequal shares of the rows, or overlapping "
                f"ones, on the mesh {dict(zip(AXES, devices.shape, strict=True))}; let tensor x "
                "sequence divide the devices of each process, or be a multiple of them."
            )
    return min(held[process]) // size, len(rows) // size


def constrain(x: Array, *axes: str | None) -> Array:
    """`x`, which lies where these logical axes say; as it is where no mesh is set."""
    mesh = current_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, spec(*axes))


def current_mesh() -> Any:
    """The mesh that is set, if it has our axes and more than one device; else None."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(AXES) <= set(mesh.axis_names) or mesh.size == 1:
        return None
    return mesh


def axis_size(axis: str) -> int:
    """Devices along an axis of the mesh that is set; 1 where none is."""
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape[axis]


def per_device(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` run by each device on its own part of the arguments, without communication.

    The arguments are cut as `in_specs` says (a tree of `spec`s), the results put together as
    `out_specs` says. Without a mesh it is `function` itself.
    """
    mesh = current_mesh()
    if mesh is None:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def named(mesh: Mesh, tree: Any) -> Any:
    """A tree of specs as shardings on `mesh`."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, leaf), tree, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
