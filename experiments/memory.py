"""Device memory of GDN-2 and CARVE, compiled for an H100 that need not be there.

  python -m experiments.memory [--implementations=pallas,chunked] [--programs=rule,layer]
                               [--output=FILE.json]

Nothing runs: XLA compiles forward and backward of the rule, of its layer, and whole train steps of
two layers, all at the official layer's sizes, and says what the programs hold. It needs JAX's GPU
plugin (pip install -e '.[aot]') and no GPU; without one, JAX_PLATFORMS=cpu keeps JAX from looking
for it.
"""

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from carve_jax.errors import UserError
from carve_jax.files import output_file, write_atomically
from carve_jax.mixers import MIXERS
from carve_jax.model import LanguageModel
from carve_jax.ops.gated_delta import IMPLEMENTATIONS
from carve_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from carve_jax.training.reports.provenance import describe_environment
from carve_jax.training.run import make_init
from carve_jax.training.settings import make_model_config, nearest
from carve_jax.training.step import make_loss, make_train_step
from configs.base import get_config
from experiments import cli
from experiments.absent import KIND, Place, absent_h100, traced_for_gpu
from experiments.benchmark_steps import LAYER_SIZES
from experiments.contenders import LAYER, RULES, Shape, rule_arguments, rule_function, rule_inputs
from experiments.timing import peak_bytes, with_pullback
from pallas_kernels import device

RESULTS = Path(__file__).parent / "results"
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
    config = get_config()
    sizes = {"num_heads": shape.heads, "key_dim": shape.channels, "value_dim": shape.channels}
    config.model.update({**model, **sizes, "pattern": (rule,), "remat": remat})
    config.model.implementation = implementation
    language_model = LanguageModel(make_model_config(config))
    recipe = OptimizerConfig(**config.optimizer)
    schedule = make_schedule(recipe, config.steps)
    optimizer = make_optimizer(recipe, schedule)
    loss = make_loss(language_model, loss_chunk=config.loss_chunk, z_loss=config.z_loss)
    state = jax.eval_shape(make_init(language_model, optimizer, config.seed))
    whole = jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.int32)
    batch = dict.fromkeys(("tokens", "targets", "segment_ids", "target_bytes"), whole)
    batch["loss_mask"] = jax.ShapeDtypeStruct(whole.shape, jnp.float32)
    step: Any = make_train_step(loss, optimizer, schedule)
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


def check_names(flag: str, given: list[str], allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The names as given.

    Raises:
      UserError: none, or one that is not allowed.
    """
    if not given:
        raise UserError(f"--{flag} is empty; allowed are {', '.join(allowed)}")
    for name in given:
        if name not in allowed:
            raise UserError(f"--{flag}: unknown {name!r}; {nearest(name, allowed)}")
    return tuple(given)


def main(argv: list[str]) -> None:
    """Parses the flags, compiles, prints a table and writes the JSON."""
    values = flags.FlagValues()
    implementations = ["pallas", "chunked"]
    flags.DEFINE_list("implementations", implementations, "Of the rule.", flag_values=values)
    flags.DEFINE_list("programs", list(PROGRAMS), "What is compiled.", flag_values=values)
    flags.DEFINE_string("output", None, "Where the JSON goes.", flag_values=values)
    cli.refuse_unknown(cli.parse_flags(values, argv), values)
    programs = check_names("programs", values.programs, tuple(PROGRAMS))
    chosen = check_names("implementations", values.implementations, IMPLEMENTATIONS)
    today = datetime.date.today().isoformat()
    path = output_file(values.output or RESULTS / f"{today}_memory.json")
    place = absent_h100()
    os.environ[device.SWITCH] = "compile"  # kernels are traced for a GPU that need not be there
    with traced_for_gpu():
        found = measure(place, programs, chosen)
    record = {
        "date": today,
        "compiled_for": KIND,
        "shape": LAYER._asdict(),
        "model": MODEL,
        **describe_environment(),
        "command": cli.command_line("memory", argv),
        "bytes": found,
    }
    write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    cli.run(main)
