"""What compiled programs of GDN-2 and CARVE hold of a device: the rule, its layer, a train step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from carve_jax.mixers import MIXERS
from experiments.measuring.rule_calls import (
    LAYER,
    RULES,
    Shape,
    rule_arguments,
    rule_function,
    rule_inputs,
)
from experiments.measuring.timing import peak_bytes, with_pullback
from experiments.measuring.train_steps import LAYER_SIZES, make_step
from experiments.planning.ahead_of_time import Place

MODEL = {**LAYER_SIZES, "layers": 2, "compute_dtype": "bfloat16"}

Lower = Callable[[Place, str, str, Shape, dict[str, Any]], jax.stages.Lowered]


def lower_rule(
    place: Place, rule: str, implementation: str, shape: Shape, model: dict[str, Any]
) -> jax.stages.Lowered:
    """The rule's output and every gradient; log-decay in float32."""
    x = place(jax.eval_shape(lambda: rule_inputs(shape, model["compute_dtype"])))
    function = with_pullback(rule_function(rule, implementation))
    return jax.jit(function).lower(x["cotangent"], *rule_arguments(x, rule))


def lower_layer(
    place: Place, rule: str, implementation: str, shape: Shape, model: dict[str, Any]
) -> jax.stages.Lowered:
    """The layer's output and the gradients of its parameters and its input."""
    batch, length, heads, channels = shape
    mixer: Any = MIXERS[rule](
        num_heads=heads,
        key_dim=channels,
        value_dim=channels,
        compute_dtype=model["compute_dtype"],
        implementation=implementation,
    )
    rows = (batch, length, model["d_model"])
    x = place(jax.ShapeDtypeStruct(rows, jnp.dtype(model["compute_dtype"])))
    params = place(jax.eval_shape(mixer.init, jax.random.key(0), x))
    function = with_pullback(lambda params, x: mixer.apply(params, x)[0])
    return jax.jit(function).lower(x, params, x)


def lower_train_step(
    place: Place,
    rule: str,
    implementation: str,
    shape: Shape,
    model: dict[str, Any],
    remat: str = "none",
) -> jax.stages.Lowered:
    """A whole step of training, as `experiments.train` makes it; the state is donated."""
    sizes = {"num_heads": shape.heads, "key_dim": shape.channels, "value_dim": shape.channels}
    own = {"pattern": (rule,), "remat": remat, "implementation": implementation}
    _, init, step = make_step({**model, **sizes, **own})
    state = jax.eval_shape(init)
    whole = jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.int32)
    batch = dict.fromkeys(("tokens", "targets", "segment_ids", "target_bytes"), whole)
    batch["loss_mask"] = jax.ShapeDtypeStruct(whole.shape, jnp.float32)
    return step.lower(place(state), place(batch))


def lower_recomputing_step(
    place: Place, rule: str, implementation: str, shape: Shape, model: dict[str, Any]
) -> jax.stages.Lowered:
    """A step that keeps each layer's input alone and finds the rest again."""
    return lower_train_step(place, rule, implementation, shape, model, remat="full")


PROGRAMS: dict[str, Lower] = {
    "rule": lower_rule,
    "layer": lower_layer,
    "train_step": lower_train_step,
    "train_step_remat": lower_recomputing_step,
}


def figures(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a compiled program.

    `total` is what the device must have: arguments, outputs and temporaries, less outputs that take
    a donated argument's place (`aliased`).
    """
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend reports no memory"
    return {
        "total": peak_bytes(compiled),
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
    }


def measure(
    place: Place,
    programs: tuple[str, ...],
    implementations: tuple[str, ...],
    shape: Shape = LAYER,
    model: dict[str, Any] = MODEL,
) -> dict[str, Any]:
    """Both rules' bytes of each program and implementation, and CARVE's total over GDN-2's.

    Prints a line for each as it is found.
    """
    found: dict[str, Any] = {}
    print(f"{'GB at ' + shape.label:<32} {'carve / gdn2':>12} {'gdn2':>8} {'carve':>8}")
    for program in programs:
        for implementation in implementations:
            entry: dict[str, Any] = {
                rule: figures(
                    PROGRAMS[program](place, rule, implementation, shape, model).compile()
                )
                for rule in RULES
            }
            gdn2, carve = (entry[rule]["total"] for rule in ("gdn2", "carve"))
            entry["ratio"] = round(carve / gdn2, 3)
            found[f"{program} {implementation}"] = entry
            print(
                f"{f'{program} {implementation}':<32} {entry['ratio']:>12.3f} {gdn2 / 1e9:>8.2f} "
                f"{carve / 1e9:>8.2f}",
                flush=True,
            )
    return found
