"""The devices of a run: the mesh it asks for, and functions whose batches are laid over it."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from carve_jax.config import LMConfig
from carve_jax.errors import UserError
from carve_jax.placement import check_mesh
from carve_jax.sharding import make_mesh, row_share, spec
from carve_jax.training.step import Batch, TrainState


def make_run_mesh(sizes: Mapping[str, int], model: LMConfig, rows: int, length: int) -> Mesh | None:
    """The mesh of `config.mesh`, checked against model and batch; None for one device.

    Args:
      sizes: devices along each axis; -1: all that are left.
      model: what is laid over it.
      rows: of a batch that are taken at a time.
      length: tokens of a row.

    Raises:
      UserError: sizes that the devices, the processes, the model or the batch do not fit.
    """
    if all(size == 1 for size in sizes.values()):
        if jax.process_count() > 1:
            raise UserError(
                f"config.mesh is one device, but the {jax.process_count()} processes have "
                f"{jax.device_count()}: give --config.mesh.data=-1 or --config.mesh.fsdp=-1, or "
                f"sizes whose product is {jax.device_count()}"
            )
        return None
    try:
        mesh = make_mesh(dict(sizes))
        check_mesh(model, mesh.shape, rows, length)
        share_of(mesh)
    except ValueError as error:
        raise UserError(f"config.mesh: {error}") from error
    return mesh


@functools.lru_cache(maxsize=4)
def share_of(mesh: Mesh | None) -> tuple[int, int]:
    """Which share of a batch's rows this process makes, and of how many; see `row_share`."""
    if jax.process_count() == 1:
        return 0, 1
    assert mesh is not None, "several processes have more than one device"
    return row_share(mesh.devices, jax.process_index())


class OnMesh(NamedTuple):
    """A jitted function of (state or parameters, batch), with the batch laid over a mesh."""

    mesh: Mesh
    function: Any

    def __call__(self, tree: Any, batch: Batch) -> Any:
        """Runs it; `batch` is this process's share of the rows, on the host or anywhere."""
        rows, length = batch["tokens"].shape
        whole = (rows * share_of(self.mesh)[1], length)
        with jax.set_mesh(self.mesh):
            return self.function(
                tree, jax.make_array_from_process_local_data(self._rows(), dict(batch), whole)
            )

    def lower(self, tree: Any, batch: Batch) -> jax.stages.Lowered:
        """Its program for these shapes (arrays or `jax.ShapeDtypeStruct`); nothing runs."""

        def place(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._rows())

        with jax.set_mesh(self.mesh):
            return self.function.lower(tree, jax.tree.map(place, dict(batch)))

    def _rows(self) -> NamedSharding:
        return NamedSharding(self.mesh, spec("batch", "length"))


def with_shardings(shapes: TrainState, shardings: Any) -> TrainState:
    """The shapes of a state, each with where it lies; None: all on one device."""
    if shardings is None:
        shardings = jax.tree.map(lambda _: one_device(), shapes)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def one_device() -> SingleDeviceSharding:
    """The first device alone."""
    return SingleDeviceSharding(jax.devices()[0])
