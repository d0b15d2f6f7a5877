"""Two parts of the gpu suite: steps of decoding against the copy, and a whole step of training.

What compiles can be compiled from shapes alone, before any array exists: `decode_program` and
`training_program`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.model import LanguageModel
from carve_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from carve_jax.training.run import make_init
from carve_jax.training.settings import make_model_config
from carve_jax.training.step import Batch, TrainState, make_loss, make_train_step
from configs.base import get_config
from experiments.timing import (
    Carried,
    Contender,
    LeftOut,
    attempt,
    device_bytes,
    median_seconds,
    peak_bytes,
    ratio,
)
from pallas_kernels.decode.step import decode_step
from pallas_kernels.decode.step_sizes import StepInputs

MIXERS = ("gdn2", "carve")
NOMINAL_RATE = 3e12  # bytes a second; decides how many steps a loop takes
LAYER_SIZES = {
    "vocab_size": 32000, "d_model": 2304, "layers": 18, "mlp_dim": 6208, "num_heads": 16,
    "key_dim": 128, "value_dim": 128,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """What is decoded: K = V = channels; `interpret` runs the Pallas kernel without a GPU."""

    batches: tuple[int, ...] = (1, 64, 512)
    heads: int = 16
    channels: int = 128
    dtype: str = "bfloat16"
    backends: tuple[str, ...] = ("pallas", "triton")
    interpret: bool = False
    most_steps: int = 1000


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """What is trained: gdn2_1.3B's sizes, and the most rows of `length` tokens that fit.

    Attributes:
      model: fields of the config's section `model`.
      remat: what backward computes again, as in `LMConfig`.
      rows: sizes of the batch, tried in order.
      length: tokens of a row.
      implementation: of the rule.
    """

    model: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(LAYER_SIZES))
    remat: str = "full"
    rows: tuple[int, ...] = (4, 2, 1)
    length: int = 4096
    implementation: str = "pallas"


def decode_inputs(plan: DecodePlan, batch: int) -> tuple[StepInputs, jax.Array]:
    """A token's inputs and a state [B, H, K, V] float32; the log-decay is float32."""
    keys = jax.random.split(jax.random.key(batch), 7)
    rows = (batch, plan.heads, plan.channels)
    query, key, value, decay, erase, write = (
        jax.random.normal(k, rows, jnp.float32) for k in keys[:6]
    )
    inputs = StepInputs(
        query=query.astype(plan.dtype),
        key=(key / jnp.linalg.norm(key, axis=-1, keepdims=True)).astype(plan.dtype),
        value=value.astype(plan.dtype),
        log_decay=-jax.nn.softplus(decay),
        erase=jax.nn.sigmoid(erase).astype(plan.dtype),
        write=jax.nn.sigmoid(write).astype(plan.dtype),
    )
    return inputs, jax.random.normal(keys[6], (*rows, plan.channels), jnp.float32)


def decode_sizes(plan: DecodePlan, batch: int) -> tuple[int, int]:
    """Fewest bytes of a step (state read and written, inputs read, the output written), and those
    of the state."""
    inputs, memory = jax.eval_shape(functools.partial(decode_inputs, plan, batch))
    state = _bytes(memory)
    return 2 * state + _bytes(inputs) + _bytes(inputs.value), state


def decode_steps(plan: DecodePlan, moved: int, turn_seconds: float) -> int:
    """Steps of one compiled loop.

    They follow from the bytes a step moves and not from a measured rate: the loop's program, of
    which their number is a part, can then be compiled before anything is measured.
    """
    return max(8, min(plan.most_steps, math.ceil(turn_seconds * NOMINAL_RATE / moved)))


def decode_program(
    plan: DecodePlan, inputs: StepInputs, memory: Any, backend: str, steps: int
) -> jax.stages.Compiled:
    """So many steps in one compiled loop that hands the donated state on from step to step.

    At a small batch a step takes microseconds; called one by one it would be the launch from
    Python that is timed. The loop's token is the same each step, the state is the last step's.
    `inputs` and `memory` may be arrays or their shapes.
    """

    def loop(carry: tuple[jax.Array, jax.Array], inputs: StepInputs) -> tuple[Any, None]:
        def step(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return decode_step(
                *inputs,
                carry[1],
                scale=plan.channels**-0.5,
                backend=backend,
                interpret=plan.interpret,
            )

        return jax.lax.fori_loop(0, steps, step, carry), None

    carry = jax.eval_shape(lambda i, m: (jnp.zeros_like(i.value), m), inputs, memory)
    return jax.jit(loop, donate_argnums=0).lower(carry, inputs).compile()


def decode_contender(plan: DecodePlan, batch: int, backend: str, steps: int) -> Contender:
    """The loop of `decode_program` on numbers of its own."""
    inputs, memory = decode_inputs(plan, batch)
    compiled = decode_program(plan, inputs, memory, backend, steps)
    carry = (jnp.zeros_like(inputs.value), memory)
    return Contender(Carried(compiled, carry, inputs), (), peak_bytes(compiled))


def measure_decode(
    plan: DecodePlan, copy_rate: float, repeats: int, turn_seconds: float
) -> dict[str, Any]:
    """Seconds a step and the share of the copy's bytes a second, for each batch and backend.

    A state that is smaller than the chip's cache (batch 1: 1 MiB) is read from there, and its
    share may exceed 1: only large batches speak of the memory. A loop whose program needs more than
    one state and a half has copied it; `copies_state` says so.

    Args:
      plan: what is decoded.
      copy_rate: bytes a second of a copy.
      repeats, turn_seconds: as `median_seconds` takes them.
    """
    figures: dict[str, Any] = {"batches": {}, "left_out": {}}
    for batch in plan.batches:
        moved, state = decode_sizes(plan, batch)
        steps = decode_steps(plan, moved, turn_seconds)
        contenders = {}
        for backend in plan.backends:
            made = attempt(functools.partial(decode_contender, plan, batch, backend, steps))
            if isinstance(made, str):
                figures["left_out"][f"{backend}, batch {batch}"] = made
            else:
                contenders[backend] = made
        times = median_seconds(contenders, repeats, turn_seconds=turn_seconds)
        figures["batches"][str(batch)] = {
            backend: {
                "share_of_copy": round(moved * steps / seconds / copy_rate, 4),
                "seconds_a_step": seconds / steps,
                "steps_a_call": steps,
                "bytes_a_step": moved,
                "copies_state": contenders[backend].peak_bytes > 1.5 * state,
            }
            for backend, seconds in times.items()
        }
    return figures


class Training(NamedTuple):
    """A train step of one mixer.

    Attributes:
      step: (state, batch) -> (state, metrics), compiled; it donates the state.
      init: gives the first state.
      make_batch: gives a batch.
      rows: of the batch.
      left_out: larger batches that do not fit, and why.
    """

    step: jax.stages.Compiled
    init: Callable[[], TrainState]
    make_batch: Callable[[], Batch]
    rows: int
    left_out: dict[str, str]


def training_program(plan: TrainPlan, mixer: str, rows: int) -> Training:
    """The compiled step, the state's initialiser and a batch, as `experiments.train` makes them.

    Documents are a row long, tokens random: what they say does not change what is computed.
    """
    config = get_config()
    own = {"pattern": (mixer,), "implementation": plan.implementation, "remat": plan.remat}
    config.model.update({**plan.model, **own})
    model = LanguageModel(make_model_config(config))
    recipe = OptimizerConfig(**config.optimizer)
    schedule = make_schedule(recipe, config.steps)
    optimizer = make_optimizer(recipe, schedule)
    init = make_init(model, optimizer, config.seed)
    loss = make_loss(model, loss_chunk=config.loss_chunk, z_loss=config.z_loss)

    def make_batch() -> Batch:
        shape, words = (rows, plan.length), model.config.vocab_size
        tokens = jax.random.randint(jax.random.key(0), shape, 0, words, jnp.int32)
        return {
            "tokens": tokens,
            "targets": jnp.roll(tokens, -1, axis=1),
            "segment_ids": jnp.zeros_like(tokens),
            "loss_mask": jnp.ones(tokens.shape, jnp.float32),
            "target_bytes": jnp.zeros_like(tokens),
        }

    step: Any = make_train_step(loss, optimizer, schedule)
    compiled = step.lower(jax.eval_shape(init), jax.eval_shape(make_batch)).compile()
    return Training(compiled, init, make_batch, rows, {})


def fitting_program(plan: TrainPlan, mixer: str) -> Training:
    """The program with the most rows that fit on this device, of those of the plan.

    Raises:
      LeftOut: none fits.
    """
    limit = 0.9 * device_bytes()
    left_out: dict[str, str] = {}
    for rows in plan.rows:
        program = training_program(plan, mixer, rows)
        needed = peak_bytes(program.step)
        if needed <= limit:
            return program._replace(left_out=left_out)
        left_out[f"{rows} rows"] = f"needs {needed / 1e9:.0f} GB of {limit / 1e9:.0f}"
    raise LeftOut("; ".join(f"{rows}: {reason}" for rows, reason in left_out.items()))


def measure_mixer(plan: TrainPlan, mixer: str, repeats: int) -> dict[str, Any]:
    """Seconds and peak bytes of a whole train step with one mixer.

    Raises:
      LeftOut: not even the fewest rows fit on this device.
    """
    program = fitting_program(plan, mixer)
    carried = Carried(program.step, program.init(), program.make_batch())
    peak = peak_bytes(program.step)
    seconds = median_seconds({mixer: Contender(carried, (), peak)}, repeats)[mixer]
    return {
        "median_seconds": seconds,
        "tokens_per_second": program.rows * plan.length / seconds,
        "peak_bytes": peak,
        "finite": bool(carried.state.healthy),
        "rows": program.rows,
        "left_out": program.left_out,
    }


def measure_training(plan: TrainPlan, repeats: int) -> dict[str, Any]:
    """A whole train step with GDN-2 and then with CARVE: two states at once may not fit."""
    found = {}
    for mixer in MIXERS:
        made = attempt(functools.partial(measure_mixer, plan, mixer, repeats))
        found[mixer] = {"left_out": made} if isinstance(made, str) else made
    return compare_mixers(plan, found)


def compare_mixers(plan: TrainPlan, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of `measure_mixer` beside each other; ratios only where the rows are as many."""
    timed = {mixer: part for mixer, part in found.items() if "median_seconds" in part}
    alike = len({part["rows"] for part in timed.values()}) == 1
    seconds = {mixer: part["median_seconds"] for mixer, part in timed.items()}
    peaks = {mixer: part["peak_bytes"] for mixer, part in timed.items()}
    return {
        "ratio": ratio(seconds, "carve", "gdn2") if alike else None,
        "peak_bytes_ratio": ratio(peaks, "carve", "gdn2") if alike else None,
        "mixers": {mixer: dict(part) for mixer, part in found.items()},
        "length": plan.length,
        "model": plan.model,
        "remat": plan.remat,
        "implementation": plan.implementation,
    }


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def print_decode(part: Mapping[str, Any]) -> None:
    """Share of the copy's bandwidth first."""
    print(f"\n{'decode step':<26} {'of copy':>8} {'µs':>9}")
    for batch, backends in part["batches"].items():
        for backend, figures in backends.items():
            print(
                f"{f'batch {batch}, {backend}':<26} {figures['share_of_copy']:>8.0%} "
                f"{1e6 * figures['seconds_a_step']:>9.2f}"
                f"{'  (the state is copied)' if figures['copies_state'] else ''}"
            )
    for name, reason in part["left_out"].items():
        print(f"{name}: {reason}")


def print_training(part: Mapping[str, Any]) -> None:
    """The ratio first, then each mixer's figures."""
    if "mixers" not in part:
        print(f"\ntrain step: left out, {part['left_out']}")
        return
    figure = "-" if part["ratio"] is None else f"{part['ratio']:.3f}"
    print(f"\n{'train step, carve / gdn2':<26} {figure:>8}")
    for mixer, found in part["mixers"].items():
        if "median_seconds" not in found:
            print(f"{mixer:<26} left out, {found['left_out']}")
            continue
        print(
            f"{mixer:<26} {1e3 * found['median_seconds']:>8.1f} ms "
            f"{found['tokens_per_second']:>10.0f} tokens/s {found['rows']} rows "
            f"{found['peak_bytes'] / 1e9:>6.1f} GB"
            f"{'' if found['finite'] else '  (loss or gradient not finite)'}"
        )
