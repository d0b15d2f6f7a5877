"""What the layers of a model do to their memory, token by token: gates, contents, states."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from carve_jax.decoding import prompt_rows
from carve_jax.errors import UserError
from carve_jax.mixers import FAMILY, GateSpec
from carve_jax.model import LanguageModel, layer_names
from carve_jax.ops.content_gate import (
    CarveState,
    ContentGate,
    erase_gate,
    erase_shift,
    present_content,
)
from carve_jax.ops.gated_delta.reference import RuleInputs
from carve_jax.shapes import Array, Float, Float32, Int32

KEY_AXIS = ("query", "key", "log_decay", "erase")


class Trace(NamedTuple):
    """One row read token by token, as float32 NumPy arrays on the host.

    The axes are layers (those of `layers`), tokens, value heads, and channels. A gate that is one
    a head stands at each of its channels; key heads that values share stand at each value head.

    Attributes:
      layers: the layers traced, such as "0 carve": those of the gated delta family. Mamba-3 and
        attention have no such state and are left out.
      tokens: the row.
      query, key, value: what the rule reads, the query not yet scaled.
      log_decay: g ≤ 0; exp g of a key channel of the state is kept.
      erase: b, in [0, 1] (or [0, 2]) of a key channel.
      blind_erase: b as it would be under no content, all else as it was; b itself in layers without
        a content gate.
      write: w of a value channel.
      content: m, which the token's erase gate saw; 0 in layers without a content gate.
      output: o, the rule's own: scaled, before any norm or gate.
      state_norm: Frobenius norm of the state after the token.
      state: S after the token; None where it was not asked for.
    """

    layers: tuple[str, ...]
    tokens: Int32[np.ndarray, " T"]
    query: Float32[np.ndarray, "layers T N K"]
    key: Float32[np.ndarray, "layers T N K"]
    value: Float32[np.ndarray, "layers T N V"]
    log_decay: Float32[np.ndarray, "layers T N K"]
    erase: Float32[np.ndarray, "layers T N K"]
    blind_erase: Float32[np.ndarray, "layers T N K"]
    write: Float32[np.ndarray, "layers T N V"]
    content: Float32[np.ndarray, "layers T N V"]
    output: Float32[np.ndarray, "layers T N V"]
    state_norm: Float32[np.ndarray, "layers T N"]
    state: Float32[np.ndarray, "layers T N K V"] | None


def trace(
    model: LanguageModel, params: Any, tokens: Int32[Any, " T"], *, states: bool = True
) -> Trace:
    """Read one row as decoding does, a token at a time, and keep what each layer did.

    Args:
      model: with at least one layer of the gated delta family.
      params: its parameters.
      tokens: ids of the row.
      states: keep every state, layers · T · N · K · V floats; without them only their norms.

    Raises:
      UserError: no layer of the model has such a state.
      ValueError, TypeError: tokens that are no row of the model's vocabulary.
    """
    names = [name for name, mixer in layer_names(model.config) if mixer in FAMILY]
    if not names:
        raise UserError(
            f"pattern={model.config.pattern} has no layer of the gated delta family to trace: "
            f"give a model with one of {', '.join(FAMILY)}"
        )
    (row,) = prompt_rows(model, [tokens])
    read = jax.device_get(_read_traced(model, params, jnp.asarray(row), states=states))
    by_layer = [
        jax.tree.map(lambda leaf, r=repeat: leaf[:, r], read[name])
        for repeat in range(model.config.repeats)
        for name in names
    ]
    stacked: dict[str, Any] = {
        field: None if by_layer[0][field] is None else np.stack([one[field] for one in by_layer])
        for field in by_layer[0]
    }
    pattern = model.config.pattern
    layers = (f"{i} {pattern[i % len(pattern)]}" for i in range(model.config.layers))
    return Trace(tuple(name for name in layers if name.split()[1] in FAMILY), row, **stacked)


def singular_values(read: Trace) -> Float32[np.ndarray, "layers T N values"]:
    """Singular values of every state, largest first: how many directions the memory holds.

    Raises:
      UserError: the trace has no states.
    """
    if read.state is None:
        raise UserError("this trace kept no states: make it by trace(…, states=True)")
    return np.linalg.svd(read.state, compute_uv=False)


@functools.partial(jax.jit, static_argnames=("model", "states"))
def _read_traced(
    model: LanguageModel, params: Any, tokens: Int32[Array, " T"], *, states: bool
) -> dict[str, dict[str, Array | None]]:
    """The fields of `Trace` by layer of the pattern, with axes tokens and repeats in front."""
    mixers = {name: mixer for name, mixer in layer_names(model.config) if mixer in FAMILY}

    def step(cache: Any, token: Array) -> tuple[Any, Any]:
        (_, updated), sown = model.apply(
            {"params": params}, token[None, None], cache, method="hidden", mutable="intermediates"
        )
        seen = {
            name: _one_token(
                model,
                mixer,
                params["blocks"][name]["mixer"],
                sown["intermediates"]["blocks"][name]["mixer"],
                (cache[name].state, updated[name].state),
                states,
            )
            for name, mixer in mixers.items()
        }
        return updated, seen

    return jax.lax.scan(step, model.init_cache(1, len(tokens)), tokens)[1]


def _one_token(
    model: LanguageModel,
    mixer: str,
    params: Any,
    sown: Any,
    state: tuple[Any, Any],
    states: bool,
) -> dict[str, Array | None]:
    """The fields of `Trace` for a layer of the pattern at one token, with the repeats in front."""
    config = model.config
    inputs = RuleInputs(*(leaf[:, 0, 0] for leaf in sown["rule_inputs"][0]))
    output = sown["rule_output"][0][:, 0, 0]
    repeats, heads = output.shape[:2]

    def spread(leaf: Array, channels: int) -> Array:
        leaf = jnp.repeat(leaf, heads // leaf.shape[1], axis=1)
        return jnp.broadcast_to(leaf, (repeats, heads, channels))

    key_axis = {name: spread(getattr(inputs, name), config.key_dim) for name in KEY_AXIS}
    before, after = state
    content = jnp.zeros_like(output)
    key_axis["blind_erase"] = key_axis["erase"]
    if isinstance(before, CarveState):
        gates = FAMILY[mixer].gates_of(config)
        if gates.reads_layer_below:  # the rule was given b itself
            content = sown["content_below"][0][:, 0, 0]
            logits = spread(sown["erase_logits"][0][:, 0, 0], config.key_dim)
        else:
            content = jax.vmap(present_content)(before)[:, 0]
            logits = key_axis["erase"]
            key_axis["erase"] = _content_erase(gates, params, content, logits)
        nothing = jnp.zeros_like(content)
        key_axis["blind_erase"] = _content_erase(gates, params, nothing, logits)
        after = after.memory
    value_axis = {
        "value": inputs.value,
        "write": spread(inputs.write, config.value_dim),
        "content": content,
        "output": output,
    }
    fields = {name: leaf.astype(jnp.float32) for name, leaf in (key_axis | value_axis).items()}
    memory = after[:, 0]
    norm = jnp.linalg.norm(memory, axis=(-2, -1))
    return {**fields, "state_norm": norm, "state": memory if states else None}


def _content_erase(
    spec: GateSpec,
    params: Any,
    content: Float32[Array, "repeats N V"],
    logits: Float[Array, "repeats N K"],
) -> Float[Array, "repeats N K"]:
    """What the rule makes of the erase logits, by its own functions."""

    def of_layer(down: Array, up: Array, content: Array, logits: Array) -> Array:
        gate = ContentGate(
            down.astype(logits.dtype),
            up.astype(logits.dtype),
            chunk=spec.gate_chunk,
            scale=spec.erase_scale,
            stop_gradient=spec.stop_gradient_content,
            norm=spec.content_norm,
            dtype=logits.dtype,
        )
        shift = erase_shift(content[:, None], gate)[:, 0]
        return erase_gate(logits.astype(shift.dtype), shift, gate)

    return jax.vmap(of_layer)(params["content_down"], params["content_up"], content, logits)
