"""State dicts to parameters and back."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from carve_jax.config import LMConfig
from carve_jax.interop.errors import InteropError
from carve_jax.interop.layers import describe, flat_shapes, layer_entries, layer_name
from carve_jax.interop.tables import LAYOUTS, Entry, Shape, Transform
from carve_jax.interop.weights import READABLE, Weight, open_weights, safetensors
from carve_jax.mixers import MIXERS, Mixer, SoftmaxAttention
from carve_jax.model import LanguageModel, layer_names

Target = LMConfig | LanguageModel | Mixer


class Slot(NamedTuple):
    """A tensor of the state dict and the parameters in it.

    Attributes:
      theirs: name of the tensor.
      ours: paths of the parameters.
      transform: how they lie in it.
      repeat: index in the parameters' first axis, the repeats of a model's pattern; None
        for parameters that have no such axis.
      optional: it may be left out, since it repeats another (tied embeddings).
    """

    theirs: str
    ours: tuple[str, ...]
    transform: Transform
    repeat: int | None = None
    optional: bool = False

    def shapes(self, ours: Mapping[str, Shape]) -> list[Shape]:
        """Shapes of the parameters in this one tensor."""
        start = 0 if self.repeat is None else 1
        return [ours[path][start:] for path in self.ours]

    def shape(self, ours: Mapping[str, Shape]) -> Shape:
        """Shape of the tensor."""
        blank = [np.broadcast_to(np.int8(0), shape) for shape in self.shapes(ours)]
        return self.transform.join(blank).shape


def from_torch(
    weights: Mapping[str, Any] | str | os.PathLike[str], target: Target, layout: str = "fla"
) -> dict[str, Any]:
    """Parameters from a PyTorch state dict.

    Nothing is rounded: elements are moved, and float16 and bfloat16 widened to float32. Options
    that leave no trace in the weights are the target's to say, and must be right: negative
    eigenvalues, the form of KDA's decay, the window and rotary base of attention, the epsilons of
    the norms (`norm_eps`, 1e-6 by default in flash-linear-attention's models).

    Args:
      weights: names to arrays (of NumPy, JAX or PyTorch, which is not imported), a .safetensors
        file, or a folder of such files, whose names are disjoint.
      target: what the weights are for: a whole model, by its `LMConfig` or `LanguageModel`,
        or one mixer, whose width is taken from the weights.
      layout: one of `LAYOUTS`: "fla", "gdn2_official", "gdn2_official_packed".

    Returns:
      The tree of float32 parameters that `target.init` gives, with these values.

    Raises:
      InteropError: when the target has no place in the layout; when names are missing,
        unexpected or misshapen, in which case all of them are listed; when a file cannot be
        read. Nothing is converted then.
      ImportError: when a path is given and safetensors is not installed.
    """
    _check_layout(layout)
    given = open_weights(weights)
    shapes = _our_shapes(target, _width_of_weights(given) if _is_mixer(target) else 0)
    slots = _slots(target, layout, shapes)
    _check_weights(given, slots, shapes, target, layout)
    flat: dict[str, np.ndarray] = {}
    for slot in slots:
        if slot.optional and slot.theirs not in given:
            continue
        tensor = given[slot.theirs].read()
        parts = slot.transform.split(tensor, slot.shapes(shapes))
        for path, part in zip(slot.ours, parts, strict=True):
            if slot.optional:
                _check_tied(slot, flat[path], part)
                continue
            whole = flat.setdefault(path, np.empty(shapes[path], np.float32))
            whole[... if slot.repeat is None else slot.repeat] = part
    # A copy: on a CPU an array of JAX may otherwise share memory with the PyTorch tensor.
    return traverse_util.unflatten_dict(
        {path: jnp.array(flat.pop(path)) for path in shapes}, sep="/"
    )


def to_torch(
    params: Mapping[str, Any], target: Target, layout: str = "fla", dtype: Any = None
) -> dict[str, np.ndarray]:
    """A state dict of NumPy arrays from parameters: `from_torch` backwards.

    `{name: torch.from_numpy(array) for …}` makes it PyTorch's (bfloat16, which NumPy lacks,
    goes through a file: `save_safetensors`). Tied embeddings are given under both names.

    Args:
      params: parameters of `target`.
      target: the model or mixer they belong to.
      layout: one of `LAYOUTS`.
      dtype: float32, bfloat16 or float16, to which values are rounded; None for their own.

    Returns:
      Names to arrays, each contiguous and with memory of its own.

    Raises:
      InteropError: when the target has no place in the layout, or the parameters are not its.
    """
    _check_layout(layout)
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    shapes = _our_shapes(target, _width_of_params(flat) if _is_mixer(target) else 0)
    slots = _slots(target, layout, shapes)
    _check_params(flat, shapes)
    kind = None if dtype is None else jnp.dtype(dtype)
    if kind is not None and kind.name not in READABLE:
        raise InteropError(f"dtype={kind.name}; choose one of {', '.join(READABLE)}.")
    state = {}
    values = {path: np.asarray(value) for path, value in flat.items()}
    for slot in slots:
        whole = [values[path] for path in slot.ours]
        parts = whole if slot.repeat is None else [part[slot.repeat] for part in whole]
        state[slot.theirs] = np.array(slot.transform.join(parts), dtype=kind, order="C")
    return state


def save_safetensors(
    path: str | os.PathLike[str],
    params: Mapping[str, Any],
    target: Target,
    layout: str = "fla",
    dtype: Any = None,
) -> None:
    """Write `to_torch(params, target, layout, dtype)` to a .safetensors file.

    Raises:
      InteropError: as `to_torch`.
      ImportError: when safetensors is not installed.
    """
    package = safetensors()
    state = to_torch(params, target, layout, dtype)
    # The mark that PyTorch's readers look for.
    package.numpy.save_file(state, os.fspath(path), metadata={"format": "pt"})


def _is_mixer(target: Target) -> bool:
    return not isinstance(target, LMConfig | LanguageModel)


def _config(target: Target) -> LMConfig:
    assert isinstance(target, LMConfig | LanguageModel)
    return target if isinstance(target, LMConfig) else target.config


def _check_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise InteropError(f"layout={layout!r}; choose one of {', '.join(LAYOUTS)}.")


def _width_of_weights(given: Mapping[str, Weight]) -> int:
    """Width of the residual stream, from the input of the first projection."""
    for name in ("q_proj.weight", "attn.weight"):
        if name in given and len(given[name].shape) == 2:
            return given[name].shape[1]
    hint = describe(given)
    raise InteropError(
        "the weights are not one layer's: they have no matrix q_proj.weight or attn.weight"
        + (f"; {hint}." if hint else "."),
        unexpected=sorted(given),
    )


def _width_of_params(flat: Mapping[str, Any]) -> int:
    kernel = flat.get("q_proj/kernel")
    if kernel is None or len(kernel.shape) != 2:
        raise InteropError(
            "the parameters are not those of a mixer with a place in PyTorch: there is no "
            "matrix q_proj/kernel.",
            unexpected=sorted(flat),
        )
    return kernel.shape[0]


def _our_shapes(target: Target, width: int) -> dict[str, Shape]:
    """Shapes of the target's parameters, by path; no implementation of the rule is asked for."""
    if not _is_mixer(target):
        config = dataclasses.replace(_config(target), implementation="recurrent")
        return flat_shapes(LanguageModel(config), jnp.zeros((1, 1), jnp.int32))
    module: Any = target
    if hasattr(module, "implementation"):
        module = module.clone(implementation="recurrent")
    return flat_shapes(module, jnp.zeros((1, 1, width)))


def _slots(target: Target, layout_name: str, shapes: Mapping[str, Shape]) -> list[Slot]:
    """Every tensor of the state dict, in the order of the layers.

    Raises:
      InteropError: when a parameter has no place in the layout.
    """
    if _is_mixer(target):
        assert not isinstance(target, LMConfig | LanguageModel)
        slots = _layer_slots(layer_entries(target, layout_name), shapes)
        width = shapes["o_proj/kernel"][1]
        if isinstance(target, SoftmaxAttention):
            _check_square(shapes["o_proj/kernel"][0], width, layout_name)
    else:
        slots = _model_slots(_config(target), layout_name, shapes)
    placed = {path for slot in slots for path in slot.ours}
    homeless = sorted(shapes.keys() - placed)
    if homeless:
        raise InteropError(
            f"layout {layout_name!r} has no place for some parameters of the target.",
            unexpected=homeless,
        )
    return slots


def _model_slots(config: LMConfig, layout_name: str, shapes: Mapping[str, Shape]) -> list[Slot]:
    layout = LAYOUTS[layout_name]
    embedding, final, head = (Slot(*entry) for entry in layout.ends())
    slots = [embedding]
    blocks = []
    for name, mixer_name in layer_names(config):
        mixer = MIXERS[mixer_name].of_model(config)
        if isinstance(mixer, SoftmaxAttention):
            _check_square(config.query_heads * config.head_dim, config.d_model, layout_name)
        entries = [
            Entry(layout.mixer + theirs, tuple(f"mixer/{path}" for path in ours), transform)
            for theirs, ours, transform in layer_entries(mixer, layout_name)
        ]
        blocks.append((f"blocks/{name}/", [*layout.around, *entries]))
    for repeat in range(config.repeats):
        for position, (prefix, entries) in enumerate(blocks):
            index = repeat * len(blocks) + position
            slots += _layer_slots(entries, shapes, layout.block.format(index), prefix, repeat)
    if config.tie_embeddings:
        head = Slot(head.theirs, embedding.ours, embedding.transform, optional=True)
    return [*slots, final, head]


def _layer_slots(
    entries: Sequence[Entry],
    shapes: Mapping[str, Shape],
    their_prefix: str = "",
    our_prefix: str = "",
    repeat: int | None = None,
) -> list[Slot]:
    """The entries whose parameters there are."""
    slots = []
    for theirs, ours, transform in entries:
        paths = tuple(our_prefix + path for path in ours)
        if set(paths) <= shapes.keys():
            slots.append(Slot(their_prefix + theirs, paths, transform, repeat))
    return slots


def _check_square(inner: int, width: int, layout_name: str) -> None:
    if inner != width:
        raise InteropError(
            f"attention of layout {layout_name!r} has heads that make up the width; here they "
            f"make up {inner} channels of {width}."
        )


def _check_weights(
    given: Mapping[str, Weight],
    slots: Sequence[Slot],
    shapes: Mapping[str, Shape],
    target: Target,
    layout_name: str,
) -> None:
    """Refuse weights that do not fit, saying all that is wrong and what they look like."""
    needed = {slot.theirs: slot for slot in slots}
    missing = [name for name, slot in needed.items() if name not in given and not slot.optional]
    unexpected = sorted(given.keys() - needed.keys())
    misshapen = []
    for name, slot in needed.items():
        if name not in given:
            continue
        weight, expected = given[name], slot.shape(shapes)
        if weight.shape != expected:
            misshapen.append(f"{name} {list(weight.shape)}, expected {list(expected)}")
        elif weight.dtype not in READABLE:
            misshapen.append(f"{name} is {weight.dtype}, expected {' or '.join(READABLE)}")
    if not (missing or unexpected or misshapen):
        return
    hint = describe(given) if missing or unexpected else ""
    if hint and hint == describe(needed):
        hint = "their layers are of the right kind"
    raise InteropError(
        f"the weights do not fit {_in_words(target, layout_name)}"
        + (f"; {hint}." if hint else "."),
        missing=missing,
        unexpected=unexpected,
        misshapen=misshapen,
    )


def _in_words(target: Target, layout_name: str) -> str:
    if _is_mixer(target):
        assert not isinstance(target, LMConfig | LanguageModel)
        return f"{layer_name(target, layout_name)} in layout {layout_name!r}"
    config = _config(target)
    return (
        f"a model of {config.layers} layers, pattern ({', '.join(config.pattern)}), "
        f"in layout {layout_name!r}"
    )


def _check_params(flat: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
    missing, unexpected = sorted(shapes.keys() - flat.keys()), sorted(flat.keys() - shapes.keys())
    misshapen = [
        f"{path} {list(flat[path].shape)}, expected {list(shape)}"
        for path, shape in shapes.items()
        if path in flat and flat[path].shape != shape
    ]
    if missing or unexpected or misshapen:
        raise InteropError(
            "the parameters are not those of the target.",
            missing=missing,
            unexpected=unexpected,
            misshapen=misshapen,
        )


def _check_tied(slot: Slot, embedding: np.ndarray, head: np.ndarray) -> None:
    if not np.array_equal(embedding, head, equal_nan=True):
        raise InteropError(
            f"{slot.theirs} differs from the embedding, to which the config ties it; "
            "set tie_embeddings=False."
        )
