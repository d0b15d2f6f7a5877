"""Two parts of the gpu suite: steps of decoding against the copy, and a whole step of training."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from carve_jax.model import LanguageModel
from carve_jax.training.optimizer import make_optimizer, make_schedule
from carve_jax.training.run import make_init
from carve_jax.training.settings import make_model_config
from carve_jax.training.step import Batch, TrainState, make_loss, make_train_step
from configs.base import get_config
from experiments.timing import (
    Carried,
    Contender,
    attempt,
    device_bytes,
    median_seconds,
    peak_bytes,
    ratio,
)
from pallas_kernels.decode.step import decode_step
from pallas_kernels.decode.step_sizes import StepInputs

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
      rows: sizes of the batch, tried in order.
      length: tokens of a row.
      implementation: of the rule.
    """

    model: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(LAYER_SIZES))
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


def decode_bytes(inputs: StepInputs, memory: jax.Array) -> int:
    """Fewest bytes of a step: state read and written, inputs read, the output written."""
    return 2 * memory.nbytes + sum(x.nbytes for x in inputs) + inputs.value.nbytes


def decode_contender(plan: DecodePlan, batch: int, backend: str, steps: int) -> Contender:
    """So many steps in one compiled loop that hands the donated state on from step to step.

    At a small batch a step takes microseconds; called one by one it would be the launch from
    Python that is timed. The loop's token is the same each step, the state is the last step's.
    """
    inputs, memory = decode_inputs(plan, batch)

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

    carry = (jnp.zeros_like(inputs.value), memory)
    compiled = jax.jit(loop, donate_argnums=0).lower(carry, inputs).compile()
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
        inputs, memory = decode_inputs(plan, batch)
        moved, state = decode_bytes(inputs, memory), memory.nbytes
        del inputs, memory
        steps = max(8, min(plan.most_steps, math.ceil(turn_seconds * copy_rate / moved)))
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


def training_program(plan: TrainPlan, mixer: str, rows: int) -> tuple[Any, Any, Batch]:
    """The compiled step, the state's initialiser and a batch, as `experiments.train` makes them.

    Documents are a row long, tokens random: what they say does not change what is computed.
    """
    config = get_config()
    config.model.update({**plan.model, "pattern": (mixer,), "implementation": plan.implementation})
    model = LanguageModel(make_model_config(config))
    schedule = make_schedule(config.optimizer, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    init = make_init(model, optimizer, config.seed)
    loss = make_loss(model, loss_chunk=config.loss_chunk, z_loss=config.z_loss)
    tokens = jax.random.randint(
        jax.random.key(0), (rows, plan.length), 0, model.config.vocab_size, jnp.int32
    )
    batch = {
        "tokens": tokens,
        "targets": jnp.roll(tokens, -1, axis=1),
        "segment_ids": jnp.zeros_like(tokens),
        "loss_mask": jnp.ones(tokens.shape, jnp.float32),
        "target_bytes": jnp.zeros_like(tokens),
    }
    step: Any = make_train_step(loss, optimizer, schedule)
    return step.lower(jax.eval_shape(init), batch).compile(), init, batch


def measure_training(plan: TrainPlan, repeats: int) -> dict[str, Any]:
    """Seconds and peak bytes of a whole train step with CARVE and with GDN-2, in turns."""
    limit, skipped = 0.9 * device_bytes(), {}
    for rows in plan.rows:
        programs = {mixer: training_program(plan, mixer, rows) for mixer in ("gdn2", "carve")}
        peaks = {mixer: peak_bytes(program[0]) for mixer, program in programs.items()}
        states = {mixer: _state_bytes(program[1]) for mixer, program in programs.items()}
        # Both states stay while one of the two programs runs.
        needed = sum(states.values()) + max(peaks[m] - states[m] for m in programs)
        if needed <= limit:
            break
        skipped[f"{rows} rows"] = f"needs {needed / 1e9:.0f} GB of {limit / 1e9:.0f}"
    else:
        return {"left_out": skipped}
    carried = {
        m: Carried(compiled, init(), batch) for m, (compiled, init, batch) in programs.items()
    }
    contenders = {m: Contender(c, (), peaks[m]) for m, c in carried.items()}
    seconds = median_seconds(contenders, repeats)
    last: dict[str, TrainState] = {mixer: c.state for mixer, c in carried.items()}
    return {
        "ratio": ratio(seconds, "carve", "gdn2"),
        "peak_bytes_ratio": round(peaks["carve"] / peaks["gdn2"], 3),
        "median_seconds": seconds,
        "tokens_per_second": {m: rows * plan.length / s for m, s in seconds.items()},
        "peak_bytes": peaks,
        "finite": {mixer: bool(state.healthy) for mixer, state in last.items()},
        "rows": rows,
        "length": plan.length,
        "model": plan.model,
        "implementation": plan.implementation,
        "left_out": skipped,
    }


def _state_bytes(init: Callable[[], TrainState]) -> int:
    leaves = jax.tree.leaves(jax.eval_shape(init))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


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
    if "ratio" not in part:
        print(f"\ntrain step: left out, {part['left_out']}")
        return
    print(f"\n{'train step, carve / gdn2':<26} {part['ratio']:>8.3f}")
    for mixer, seconds in part["median_seconds"].items():
        print(
            f"{mixer:<26} {1e3 * seconds:>8.1f} ms {part['tokens_per_second'][mixer]:>10.0f} "
            f"tokens/s {part['peak_bytes'][mixer] / 1e9:>6.1f} GB"
            f"{'' if part['finite'][mixer] else '  (loss or gradient not finite)'}"
        )
