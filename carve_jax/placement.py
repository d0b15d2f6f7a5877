"""Where a model's parameters, and all that has their shape, lie on a mesh."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from carve_jax.config import LMConfig
from carve_jax.mixers import GATES, LAYERS, SOFTMAX
from carve_jax.model import layer_names
from carve_jax.ops.gated_delta.context_parallel import bubble
from carve_jax.sharding import PARAMETERS, named, spec


def check_mesh(config: LMConfig, mesh: Mapping[str, int], batch_size: int, length: int) -> None:
    """Raise ValueError unless the mesh (sizes by axis) cuts this model and its batches evenly."""
    rows, fsdp, tensor = mesh["data"] * mesh["fsdp"], mesh["fsdp"], mesh["tensor"]
    stretches, alignment = mesh["sequence"], config.segment_alignment
    if stretches > 1 and any(name.startswith("mamba3") for name in config.pattern):
        raise ValueError(
            f"sequence={stretches} of the mesh: Mamba-3's trapezoid is not cut along the sequence; "
            "use the other axes."
        )
    if stretches > 1 and length % (stretches * alignment):
        raise ValueError(
            f"sequence={stretches} of the mesh does not cut sequence_length={length} into "
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
    if set(config.pattern) - set(SOFTMAX):
        cut["num_heads"] = config.num_heads
    if any(name in GATES and LAYERS[name].gates_per == "key" for name in config.pattern):
        cut["num_key_heads"] = _key_heads(config)
    if set(SOFTMAX) & set(config.pattern):
        cut["attention_heads"] = config.query_heads
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
    if mesh["sequence"] == 1 or not config.has_content_gate:
        return None
    return bubble(batch_size // (mesh["data"] * mesh["fsdp"]), mesh["sequence"])


def state_shardings(config: LMConfig, state: Any, mesh: Mesh) -> Any:
    """Shardings of parameters, or of a tree that holds several of their shape (as a `TrainState`).

    Leaves that belong to no parameter are whole on every device.

    Raises:
      ValueError: a parameter without a place in ``sharding.PARAMETERS``.
    """
    return named(mesh, state_specs(config, state, mesh.shape))


def state_specs(config: LMConfig, state: Any, mesh: Mapping[str, int]) -> Any:
    """The same as specs, for a mesh of these sizes."""
    kinds = {name: _kind(mixer) for name, mixer in layer_names(config)}
    whole = {kind: _whole(config, kind, mesh["tensor"]) for kind in {*kinds.values(), "model"}}

    def place(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if not keys or leaf.ndim == 0:
            return PartitionSpec()
        kind, stacked = "model", keys[0] == "blocks"
        layer = kinds[keys[1]] if stacked else "model"
        if stacked:
            kind, keys = {"mixer": layer, "mlp": "mlp"}.get(keys[2], "model"), keys[2:]
            keys = keys if kind == "model" else keys[1:]
        axes = PARAMETERS[kind].get(keys[0])
        if axes is None:
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} has no place on a mesh: give it one in "
                f"sharding.PARAMETERS[{kind!r}]."
            )
        if keys[-1] == "bias":
            axes = axes[-1:]
        axes = (None, *axes) if stacked else axes
        return spec(*axes, whole=whole[layer if kind == layer else "model"])

    return jax.tree.map_with_path(place, state)


def _kind(mixer: str) -> str:
    if mixer in SOFTMAX:
        return "softmax"
    return "gated_delta" if mixer in GATES else "mamba3"


def _key_heads(config: LMConfig) -> int:
    return config.num_heads if config.num_key_heads is None else config.num_key_heads


def _whole(config: LMConfig, kind: str, tensor: int) -> frozenset[str]:
    """Logical axes that ``tensor`` devices cannot cut evenly, and that may stay whole."""
    sizes = {"vocab": config.vocab_size}
    if kind == "gated_delta":
        by_value = all(
            LAYERS[name].gates_per == "value" for name in config.pattern if name in GATES
        )
        sizes["key_heads"] = _key_heads(config)
        sizes["gate_heads"] = config.num_heads if by_value else _key_heads(config)
    if kind == "softmax":
        sizes["kv_heads"] = config.kv_heads
    return frozenset(axis for axis, size in sizes.items() if size % tensor)
