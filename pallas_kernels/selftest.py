"""The kernels against the plain recurrence, on the machine they run on.

    python -m pallas_kernels.selftest            # what ships: every dtype, size and kind of tile
    python -m pallas_kernels.selftest --quick    # the most used alone
    python -m pallas_kernels.selftest --backend=mosaic   # a backend that is never chosen by itself
    CARVE_PALLAS=interpret python -m pallas_kernels.selftest --quick   # without a GPU, slowly

Compilers lie: Triton before 3.7.1 and ptxas 12.8.93 and 13.0.88 are publicly known to miscompile
kernels like these on Hopper, with wrong gradients and no error. So a few tiles' outputs and
gradients are compared with those of the rule token by token in float32 (`reference.py`), computed
on JAX's CPU device where there is one. A check compiles two small programs: the kernels on the GPU,
seven launches forward and backward or the one of the decode step, and the recurrence on the CPU.

Exit status: 0 if all agree, 1 if some do not, 2 if there is nothing to test here. What is found
replaces what `guard.py` keeps.
"""

import argparse
import dataclasses
import functools
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import device, verdicts
from pallas_kernels.backends import BACKENDS, CHOSEN
from pallas_kernels.blocks.decay import LOWEST_ANCHORED, SPAN
from pallas_kernels.call import Content, Options, Request, Result
from pallas_kernels.decode.step import decode_step
from pallas_kernels.decode.step_sizes import BACKENDS as STEP_BACKENDS
from pallas_kernels.decode.step_sizes import StepInputs
from pallas_kernels.reference import recurrence
from pallas_kernels.tiling import Tiles, padded
from pallas_kernels.triton.stretches import choose_stretches
from pallas_kernels.verdicts import Check, Verdict

BATCH, HEADS, TOKENS, GATE_CHUNK, RANK = 1, 2, 128, 64, 16
STRETCHES = 4  # of a check of `Tiles.stretches`: two whose maps are composed, between the ends
DIFFERENT, USER_ERROR = 1, 2
KNOWN = (
    "Triton before 3.7.1 and ptxas 12.8.93 and 13.0.88 are publicly known to miscompile such "
    "kernels on Hopper"
)
# Largest error of an array, relative to its largest entry, by the coarsest rounding on the way.
# An H100 gave 3e-3 to 8e-3 (bfloat16) and 1e-7 to 1e-6 (float32); a miscompiled kernel is off by
# more than its tolerance in whole tiles.
TOLERANCE = {"bf16": 3e-2, "tf32": 1e-2, "tf32x3": 1e-4, "f32": 1e-4}
ROUNDING = {"bfloat16": "bf16", "float16": "tf32", "float32": "f32"}


class Arrays(NamedTuple):
    """A check's inputs, as `Backend.run` takes them; the last four are the content gate's."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    log_decay: jax.Array
    erase: jax.Array
    write: jax.Array
    memory: jax.Array
    down: jax.Array
    up: jax.Array
    content: jax.Array
    partial_sum: jax.Array


def tolerance(check: Check) -> float:
    """Largest error allowed, relative to the largest entry of an array."""
    steps = [ROUNDING[check.dtype]]
    if check.tiles is not None:
        steps += [check.tiles.product, check.tiles.inverse]
    return max(TOLERANCE[step] for step in steps)


def make_arrays(check: Check) -> dict[str, np.ndarray]:
    """A check's `Arrays` by name, in NumPy.

    Keys are unit vectors, decays go from weak to a hard reset. Under a content gate `erase` holds
    logits, and elsewhere gates.
    """
    rng = np.random.default_rng(0)
    stretched = check.tiles is not None and check.tiles.stretches > 1
    tokens = 1 if check.rule == "decode" else STRETCHES * SPAN if stretched else TOKENS
    keys = (BATCH, tokens, HEADS, check.key_channels)
    values = (*keys[:3], check.value_channels)

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    # Of stretches so weak that a state outlives one of them.
    log_decay = -(0.01 if stretched else 0.3) * np.log1p(np.exp(rng.standard_normal(keys)))
    log_decay[:, 5::29, :, ::3] = -40.0
    log_decay[:, 71:72] = -1000.0
    if check.decay_floor is not None:
        log_decay = np.maximum(log_decay, check.decay_floor)
    if check.decay_per_head:
        log_decay = log_decay[..., :1]
    logits = rng.standard_normal(keys)
    state, rank = (BATCH, HEADS, check.value_channels), (HEADS, check.value_channels, RANK)
    made = {
        "query": unit(rng.standard_normal(keys)),
        "key": unit(rng.standard_normal(keys)),
        "value": rng.standard_normal(values),
        "log_decay": log_decay,
        "erase": logits if check.rule == "carve" else sigmoid(logits),
        "write": sigmoid(rng.standard_normal((*values[:3], 1))),
        "memory": rng.standard_normal((*state[:2], check.key_channels, check.value_channels)),
        "down": rng.standard_normal(rank) / check.value_channels**0.5,
        "up": rng.standard_normal((HEADS, RANK, check.key_channels)),
        "content": rng.standard_normal(state),
        "partial_sum": rng.standard_normal(state),
    }
    half = ("query", "key", "value", "erase", "write")
    return {n: np.asarray(x, check.dtype if n in half else "float32") for n, x in made.items()}


def _content(check: Check, arrays: Arrays) -> Content | None:
    if check.rule != "carve":
        return None
    mean = jnp.full((BATCH, TOKENS // GATE_CHUNK), 1.0 / GATE_CHUNK, jnp.float32)
    return Content(
        *arrays[7:], mean, GATE_CHUNK, scale=1.0, stop_gradient=False, norm_eps=None,
        dtype=check.dtype,
    )  # fmt: skip


def _by_kernels(check: Check, arrays: Arrays) -> Result:
    inputs, memory, scale = StepInputs(*arrays[:6]), arrays.memory, check.key_channels**-0.5
    if check.rule == "decode":
        token: list[jax.Array] = [x[:, 0] for x in (*inputs, memory[:, None])]
        step = functools.partial(decode_step, interpret=device.mode() == "interpret")
        output, memory = step(*token, scale=scale, backend=check.backend)
        return Result(output[:, None], memory)
    options = Options(scale, check.tiles, check.decay_floor)
    return BACKENDS[check.backend].run(inputs, memory, options, _content(check, arrays))


def _by_recurrence(check: Check, arrays: Arrays) -> Result:
    inputs, scale = StepInputs(*arrays[:6]), check.key_channels**-0.5
    return recurrence(inputs, arrays.memory, scale, _content(check, arrays))


def _figures(
    check: Check, rule: Callable[[Check, Arrays], Result], arrays: Arrays
) -> tuple[Result, Arrays | None]:
    """Outputs and, of a random functional of them all, every gradient."""

    def functional(arrays: Arrays) -> tuple[jax.Array, Result]:
        found = rule(check, arrays)
        rng = np.random.default_rng(1)
        total = jnp.zeros(())
        for x in found:
            if x is not None:
                weights = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
                total += jnp.sum(weights * x.astype(jnp.float32))
        return total, found

    if check.rule == "decode":  # whose gradients no kernel computes
        return functional(arrays)[1], None
    gradients, found = jax.grad(functional, has_aux=True)(arrays)
    return found, gradients


def run_check(check: Check) -> Verdict:
    """One check, on this process's first device. Not to be called while a program is traced in the
    same thread.

    Raises:
      Whatever compiling and running the kernels raises.
    """
    started = time.perf_counter()
    arrays = make_arrays(check)

    def figures(
        rule: Callable[[Check, Arrays], Result], place: jax.Device
    ) -> tuple[Result, Arrays | None]:
        with jax.default_device(place):
            on_device = Arrays(**jax.tree.map(jnp.asarray, arrays))
            found = jax.jit(lambda a: _figures(check, rule, a))(on_device)
        return jax.tree.map(lambda x: np.asarray(x, np.float64), found)

    here = jax.local_devices()[0]
    found, gradients = figures(_by_kernels, here)
    expected, expected_gradients = figures(_by_recurrence, _cpu() or here)
    names = [n for n in Result._fields if getattr(expected, n) is not None]
    errors = {n: _error(getattr(found, n), getattr(expected, n)) for n in names}
    if gradients is not None and expected_gradients is not None:
        fields = Arrays._fields if check.rule == "carve" else Arrays._fields[:7]
        errors |= {
            f"gradient of {n}": _error(getattr(gradients, n), getattr(expected_gradients, n))
            for n in fields
        }
    return Verdict(check, errors, tolerance(check), time.perf_counter() - started)


def _cpu() -> jax.Device | None:
    """JAX's CPU device, or None where JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest error relative to the largest entry; infinite where the numbers are not finite."""
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def check_of(backend: str, request: Request) -> Check:
    """The check that speaks for calls like this one: the same kernels, of few tokens and heads."""
    assert request.sizes is not None
    dtype = jnp.dtype(request.dtype).name
    if request.sizes["T"] == 1:  # whose kernel masks what is no power of two
        return Check("decode", "pallas", dtype, request.sizes["K"], request.sizes["V"])
    channels = padded(request.sizes["K"]), padded(request.sizes["V"])
    tiles = BACKENDS[backend].choose_tiles(request)
    rule = "carve" if request.content else "gated_delta"
    if tiles.stretches != 1:
        tiles = dataclasses.replace(tiles, stretches=_stretches_checked(request, tiles))
    head = request.decay_per_head
    return Check(rule, backend, dtype, *channels, tiles, request.decay_floor, head)


def _stretches_checked(request: Request, tiles: Tiles) -> int:
    """Stretches of the check: those of a call that has any."""
    sizes = request.sizes
    assert sizes is not None
    width = padded(sizes["V"])
    programs = sizes["B"] * sizes["N"] * (width // min(width, tiles.block_value))
    spans = -(-sizes["T"] // SPAN)
    chosen = choose_stretches(tiles.stretches, programs, spans, spans)
    return 1 if request.content or chosen == 1 else STRETCHES


def shipped_checks(quick: bool = False, backends: Sequence[str] = CHOSEN) -> list[Check]:
    """What to check on this machine, the most used first; see the module for `quick`."""
    kinds = [("bfloat16", 128), ("float32", 128)]
    if not quick:
        kinds += [("bfloat16", 64), ("bfloat16", 256), ("float32", 256)]
        kinds += [("float16", 128), ("float16", 256)]
    found: dict[Check, None] = {}
    for dtype, width in kinds:
        for backend in backends:
            for check in _checks_of(backend, dtype, width, quick):
                found[check] = None
        for step in STEP_BACKENDS[: 1 if quick else None]:
            found[Check("decode", step, dtype, width, width)] = None
    return list(found)


def _checks_of(backend: str, dtype: str, width: int, quick: bool) -> Iterator[Check]:
    sizes = {"B": BATCH, "T": TOKENS, "N": HEADS, "K": width, "V": width}
    requests = [Request(dtype, sizes, content) for content in (False, True)]
    if not quick:  # the plain rule on CARVE's path, with which it then agrees to the bit
        own = BACKENDS[backend].choose_tiles(requests[1])
        requests.append(Request(dtype, sizes, False, dataclasses.replace(own, solve="walk")))
    for request in requests:
        if BACKENDS[backend].unsupported_reason(request) is None:
            check = check_of(backend, request)
            yield check
            if not quick:
                yield check._replace(decay_floor=LOWEST_ANCHORED)
                yield check._replace(decay_per_head=True)


HEADER = f"{'check':<58} {'worst':<26} {'error':>9} {'allowed':>8} {'seconds':>8}"


def row(check: Check, outcome: Verdict | str) -> str:
    """A line of the table."""
    if isinstance(outcome, str):
        return f"{check.label:<58} left out: {outcome}"
    name, error = outcome.worst
    end = "" if outcome.passed else "  WRONG"
    return (
        f"{check.label:<58} {name:<26} {error:>9.1e} {outcome.tolerance:>8.0e} "
        f"{outcome.seconds:>8.1f}{end}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the self-test and print its table; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.selftest",
        description="Compares the kernels with the plain recurrence on this machine.",
    )
    parser.add_argument("--quick", action="store_true", help="the most used tiles alone")
    parser.add_argument("--backend", choices=list(BACKENDS), help="instead of what is chosen")
    arguments = parser.parse_args(argv)
    try:
        reason = device.unsupported_reason()
        if reason is None and device.mode() == "compile":
            reason = f"{device.SWITCH}=compile traces kernels for a GPU that need not be there"
    except ValueError as error:
        reason = str(error)
    if reason is not None:
        print(
            f"nothing to test here: {reason}; {device.SWITCH}=interpret runs the kernels without a "
            "GPU, slowly",
            file=sys.stderr,
        )
        return USER_ERROR
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")
    print(f"{jax.local_devices()[0].device_kind}, JAX {jax.__version__}")
    print(HEADER, flush=True)
    wrong: list[Verdict] = []
    failed: list[str] = []
    backends = CHOSEN if arguments.backend is None else (arguments.backend,)
    for check in shipped_checks(arguments.quick, backends):
        try:
            outcome: Verdict | str = run_check(check)
        except NotImplementedError as error:
            outcome = str(error)
        except Exception as error:  # of the compiler or the driver: said, and the rest is tested
            failed.append(check.label)
            outcome = f"did not run: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if isinstance(outcome, Verdict):
            verdicts.write(outcome)
            if not outcome.passed:
                wrong.append(outcome)
        print(row(check, outcome), flush=True)
    return _conclude(wrong, failed)


def _conclude(wrong: Sequence[Verdict], failed: Sequence[str]) -> int:
    if not wrong and not failed:
        print("the kernels agree with the recurrence")
        return 0
    if wrong:
        print(f"the kernels are wrong on this machine: {wrong[0].sentence()}; {KNOWN}")
    if failed:
        print(f"{len(failed)} checks did not run, the first of them {failed[0]}")
    return DIFFERENT


if __name__ == "__main__":
    sys.exit(main())
