"""Norms of parameters, gradients and updates, layer by layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from carve_jax.shapes import Array, Float32

Norms = dict[str, Float32[Array, "..."]]


def group_of(path: tuple[Any, ...]) -> str:
    """The module a leaf of the parameter tree belongs to, as a reader sees it.

    "embed", or "blocks/layer_0_carve/mixer".
    """
    keys = [str(getattr(key, "key", key)) for key in path]
    return "/".join(keys[:-1][:3]) or keys[0]


def norms_by_group(tree: Any) -> Norms:
    """L2 norm of each group of a tree like the parameters, in float32.

    A group below "blocks" has one for each repeat of the layer, in a vector.
    """
    squares: dict[str, Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = group_of(path)
        axes = tuple(range(1 if name.startswith("blocks/") else 0, leaf.ndim))
        total = jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=axes)
        squares[name] = squares[name] + total if name in squares else total
    return {name: jnp.sqrt(value) for name, value in squares.items()}


def flat_norms(norms: dict[str, Norms]) -> dict[str, float]:
    """Norms on the host under flat names, such as "grad_norm/blocks/layer_0_carve/mixer/3"."""
    flat: dict[str, float] = {}
    for kind, groups in norms.items():
        for name, value in groups.items():
            each = np.asarray(value)
            if each.ndim == 0:
                flat[f"{kind}/{name}"] = float(each)
            else:
                flat |= {f"{kind}/{name}/{i}": float(x) for i, x in enumerate(each)}
    return flat
