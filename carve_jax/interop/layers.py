"""Which of a layout's layers a mixer is, and which layers some names belong to."""

import dataclasses
import functools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from carve_jax.interop.errors import InteropError
from carve_jax.interop.tables import LAYOUTS, RECURRENT_LAYER, Entry, Layer, Layout
from carve_jax.mixers import FAMILY, GatedDeltaMixer, Mixer, SoftmaxAttention

# Names are taken for a layer's when at least this part of both is shared, convolutions aside.
LIKENESS = 0.75
# What makes a layer of the family that layer; the rest is around the rule, or an option.
GATE_FIELDS = ("decay", "erase", "write", "content")
_WRAPPERS = ("module.", "_orig_mod.")


def layer_entries(mixer: Mixer, layout_name: str) -> tuple[Entry, ...]:
    """The table of a mixer's layer.

    Raises:
      InteropError: when the layout has no such layer.
    """
    layout = LAYOUTS[layout_name]
    if isinstance(mixer, SoftmaxAttention):
        return layout.attention(mixer.num_heads if mixer.kv_heads is None else mixer.kv_heads)
    _check_layer(mixer, layout_name)
    return RECURRENT_LAYER


def layer_name(mixer: Mixer, layout_name: str) -> str:
    """The class of a mixer's layer there."""
    layout = LAYOUTS[layout_name]
    if isinstance(mixer, SoftmaxAttention):
        return layout.attention_name
    layer = _find_layer(mixer, layout)
    return type(mixer).__name__ if layer is None else layer.name


def _find_layer(mixer: Mixer, layout: Layout) -> Layer | None:
    """The layer with the gates of this mixer, whatever surrounds the rule."""
    if not isinstance(mixer, GatedDeltaMixer):
        return None
    for layer in layout.layers:
        gates = FAMILY[layer.preset].gates
        if all(getattr(gates, field) == getattr(mixer.gates, field) for field in GATE_FIELDS):
            return layer
    return None


def _check_layer(mixer: Mixer, layout_name: str) -> None:
    """Refuse a mixer that computes something else than the layer with its names."""
    layout = LAYOUTS[layout_name]
    layer = _find_layer(mixer, layout)
    if layer is None:
        known = ", ".join([*(known.name for known in layout.layers), layout.attention_name])
        sentence = f"layout {layout_name!r} has no layer like {_in_words(mixer)}; it has {known}"
    elif wrong := _differences(mixer, layer):
        sentence = f"the mixer is not {layer.name} of {layout.source}: it has {'; '.join(wrong)}"
    else:
        return
    fitting = [
        repr(name)
        for name, other in LAYOUTS.items()
        if (found := _find_layer(mixer, other)) and not _differences(mixer, found)
    ]
    end = f"; it fits layout {' or '.join(fitting)}." if fitting else "."
    raise InteropError(sentence + end)


def _in_words(mixer: Mixer) -> str:
    name, gates = type(mixer).__name__, getattr(mixer, "gates", None)
    if gates is None:
        return name
    return f"{name} with {', '.join(f'{field}={getattr(gates, field)!r}' for field in GATE_FIELDS)}"


def _differences(mixer: Mixer, layer: Layer) -> list[str]:
    """What a mixer has otherwise than the layer, which has its gates."""
    assert isinstance(mixer, GatedDeltaMixer)
    wrong = [
        f"{field}={given!r} where it has {' or '.join(map(repr, allowed))}"
        for field, (given, allowed) in _meaningful(mixer, layer).items()
        if given not in allowed
    ]
    if not layer.grouped and mixer.key_heads != mixer.num_heads:
        wrong.append(f"{mixer.key_heads} key heads to {mixer.num_heads} value heads, not as many")
    return wrong


def _meaningful(mixer: GatedDeltaMixer, layer: Layer) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """What decides the function of this mixer: what it has, and what the layer may have."""
    fields = {}
    for given, published in (
        (mixer.gates, FAMILY[layer.preset].gates),
        (mixer.layer, FAMILY[layer.preset].layer),
    ):
        for field in dataclasses.fields(published):
            name = field.name
            own = layer.changes.get(name, getattr(published, name))
            fields[name] = (getattr(given, name), layer.options.get(name, (own,)))
    without_function = {"init", "least_rate", "gate_chunk"}
    without_function |= {name for name in fields if name.startswith("content_")}
    without_function.add("stop_gradient_content")
    if mixer.layer.output_gate == "none":
        without_function.add("gate_activation")
    if mixer.gates.decay not in ("scalar", "channel"):
        without_function.add("decay_form")
    if mixer.gates.decay != "channel":
        without_function.add("decay_rank")
    if mixer.key_heads == mixer.num_heads:
        without_function.add("gates_per")
    return {name: values for name, values in fields.items() if name not in without_function}


@functools.cache
def _names_of_layers(layout_name: str) -> Mapping[str, tuple[str, frozenset[str]]]:
    """Tensors of each layer of a layout, convolutions aside, and the preset it is."""
    layout = LAYOUTS[layout_name]
    known = {
        layout.attention_name: (
            "attention",
            frozenset(entry.theirs for entry in layout.attention(1)),
        )
    }
    for layer in layout.layers:
        mixer = FAMILY[layer.preset](
            num_heads=1, key_dim=8, value_dim=8, implementation="recurrent"
        )
        paths = flat_shapes(mixer, jnp.zeros((1, 1, 8)))
        names = (
            entry.theirs
            for entry in RECURRENT_LAYER
            if set(entry.ours) <= paths.keys() and "conv1d" not in entry.theirs
        )
        known[layer.name] = (layer.preset, frozenset(names))
    return known


def flat_shapes(module: Any, *inputs: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a module, by path ("o_proj/kernel")."""
    tree = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def describe(names: Iterable[str]) -> str:
    """What the weights of these names look like: a layout and its layers. Empty if unknown."""
    names = set(names)
    wrapped = [prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in names)]
    if names and wrapped:
        return f"all names begin with {wrapped[0]!r}, which is to be removed"
    for layout_name, layout in LAYOUTS.items():
        blocks = _by_block(names, layout)
        if not blocks or any(
            entry.theirs not in rest for rest in blocks.values() for entry in layout.around
        ):
            continue
        found: dict[str, list[int]] = {}
        for index, rest in sorted(blocks.items()):
            own = {
                name.removeprefix(layout.mixer) for name in rest if name.startswith(layout.mixer)
            }
            found.setdefault(_nearest(own, layout_name) or "an unknown layer", []).append(index)
        kinds = "; ".join(f"{kind} in {_ranges(indices)}" for kind, indices in found.items())
        return f"they look like a whole model in layout {layout_name!r}, with {kinds}"
    for layout_name in LAYOUTS:
        nearest = _nearest(names, layout_name)
        if nearest is not None:
            return f"they look like one layer, {nearest} in layout {layout_name!r}"
    return ""


def _by_block(names: Collection[str], layout: Layout) -> dict[int, set[str]]:
    before, after = map(re.escape, layout.block.split("{}"))
    blocks: dict[int, set[str]] = {}
    for name in names:
        match = re.fullmatch(f"{before}([0-9]+){after}(.+)", name)
        if match:
            blocks.setdefault(int(match[1]), set()).add(match[2])
    return blocks


def _nearest(names: Collection[str], layout_name: str) -> str | None:
    """The layer of the layout whose names are most like these."""
    names = {name for name in names if "conv1d" not in name}

    def likeness(item: tuple[str, tuple[str, frozenset[str]]]) -> float:
        own = item[1][1]
        return len(own & names) / len(own | names)

    best = max(_names_of_layers(layout_name).items(), key=likeness)
    return f"{best[0]} (our {best[1][0]!r})" if likeness(best) >= LIKENESS else None


def _ranges(indices: list[int]) -> str:
    return f"layer{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"
