"""Where a model's parameters, and all that has their shape, lie on a mesh."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from carve_jax.config import LMConfig
from carve_jax.mixers import MIXERS
from carve_jax.model import layer_names
from carve_jax.ops.gated_delta.context_parallel import bubble
from carve_jax.sharding import PARAMETERS, named, spec


def check_mesh(config: LMConfig, mesh: Mapping[str, int], batch_size: int, length: int) -> None:
    """Raise ValueError unless the mesh (sizes by axis) cuts this model and its batches evenly."""
    rows, fsdp, tensor = mesh["data"] * mesh["fsdp"], mesh["fsdp"], mesh["tensor"]
    shards, alignment = mesh["sequence"], config.segment_alignment
    entries = [MIXERS[name] for name in config.pattern]
    uncut = next((entry.uncut_sequence for entry in entries if entry.uncut_sequence), None)
    if shards > 1 and uncut:
        raise ValueError(
            f"sequence={shards} of the mesh: {uncut} not cut along the sequence; "
            "use the other axes."
        )
    if shards > 1 and length % (shards * alignment):
        raise ValueError(
            f"sequence={shards} of the mesh does not cut sequence_length={length} into "
            f"multiples of {alignment} tokens."
        )
    if batch_size % rows:
        raise ValueError(
            f"batch_size={batch_size} is no multiple of data x fsdp = {rows} of the mesh "
            f"{dict(mesh)}; change one of them."
        )
    if config.d_model % fsdp:
        raise ValueError(f"fsdp={fsdp} of the mesh does not divide d_model={config.d_model}.")
    cut = {"mlp_dim": config.mlp_dim}
    for entry in entries:
        cut |= entry.cut_by_tensor(config)
    for name, size in cut.items():
        if size % tensor:
            raise ValueError(f"tensor={tensor} of the mesh does not divide {name}={size}.")


def pipeline_bubble(config: LMConfig, mesh: Mapping[str, int], batch_size: int) -> float | None:
    """Share of their time in which CARVE's layers leave devices of the mesh idle; None without.

    Args:
      config: of the model.
      mesh: sizes by axis.
      batch_size: rows that are taken at a time, over all devices.
    """
    if mesh["sequence"] == 1 or not config.content_lag:
        return None
    return bubble(batch_size // (mesh["data"] * mesh["fsdp"]), mesh["sequence"])


def state_shardings(config: LMConfig, state: Any, mesh: Mesh) -> Any:
    """Shardings of parameters, or of a tree that holds several of their shape (as a `TrainState`).

    Leaves that belong to no parameter are replicated.

    Raises:
      ValueError: a parameter without a place in `sharding.PARAMETERS` or its mixer's entry.
    """
    return named(mesh, state_specs(config, state, mesh.shape))


def state_specs(config: LMConfig, state: Any, mesh: Mapping[str, int]) -> Any:
    """The shardings of `state_shardings` as specs, for a mesh of these sizes."""
    mixers = dict(layer_names(config))
    outside = _replicated({"vocab": config.vocab_size}, mesh["tensor"])
    inside = {
        name: _replicated(MIXERS[name].may_be_replicated(config), mesh["tensor"])
        for name in config.pattern
    }

    def place(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if not keys or leaf.ndim == 0:
            return PartitionSpec()
        known, replicated, of, stacked = PARAMETERS["model"], outside, "model", keys[0] == "blocks"
        if stacked:
            mixer, part, keys = mixers[keys[1]], keys[2], keys[2:]
            if part == "mixer":
                known, replicated, of, keys = (
                    MIXERS[mixer].parameters,
                    inside[mixer],
                    mixer,
                    keys[1:],
                )
            elif part == "mlp":
                known, of, keys = PARAMETERS["mlp"], "mlp", keys[1:]
        axes = known.get(keys[0])
        if axes is None:
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} has no place on a mesh: name its axes "
                f"among the parameters of {of!r}."
            )
        if keys[-1] == "bias":
            axes = axes[-1:]
        return spec(*((None, *axes) if stacked else axes), replicated=replicated)

    return jax.tree.map_with_path(place, state)


def _replicated(sizes: Mapping[str, int], tensor: int) -> frozenset[str]:
    """The logical axes of these sizes that `tensor` devices cannot cut evenly."""
    return frozenset(axis for axis, size in sizes.items() if size % tensor)
