"""The decode step: interpret mode, the Triton kernel's interpreter and, on a GPU, both kernels."""

import contextlib
import functools
import importlib.util
import itertools
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import carve_jax
from pallas_kernels.decode.step import StepInputs, decode_step, plain_step, tile_masks
from pallas_kernels.decode.step_sizes import (
    BACKENDS,
    DTYPES,
    StepSizes,
    StepTiles,
    aot_signature,
    default_tiles,
)
from tests.kernels.step_cases import CASES, StepCase, check_step, make_step

ROOT = Path(__file__).resolve().parents[2]
SCALE = 0.3
OFFICIAL = StepCase(1, 16, 16, 128, 128, dtype="bfloat16")
# JAX 0.11 and 0.12 say so at each lowering; Triton 3.9 speaks of a default of 3.10.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs the triton package"
)
interpreted = functools.partial(decode_step, scale=SCALE, interpret=True)


def step_arrays(case: StepCase) -> list[jax.Array]:
    return [jnp.asarray(x) for x in make_step(case)]


def sizes_of(case: StepCase) -> StepSizes:
    return StepSizes(*case[:5], *(x.shape[-1] for x in make_step(case)[3:6]))


def lowered_for_gpu(function: Callable, *args: jax.Array) -> str:
    """The program as lowered for an H100, which need not be there."""
    mesh = contextlib.nullcontext()
    if jax.default_backend() != "gpu" and jax.__version_info__ >= (0, 11):
        from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

        device = AbstractDevice(device_kind="NVIDIA H100", platform="gpu", num_cores=None)
        mesh = use_abstract_mesh(AbstractMesh((), (), abstract_device=device))
    with mesh:
        return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


# All sizes and gates by day; what differs from one of these in one thing alone, by night.
ALIKE = {
    *("bfloat16", "float16", "channel write", "scalar decay", "scalar erase", "grouped values"),
    *("odd key alone", "large odd", "one channel"),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in CASES],
)
def test_interpret_mode_equals_float64(name: str) -> None:
    output, memory = interpreted(*step_arrays(CASES[name]))
    check_step(CASES[name], np.asarray(output), np.asarray(memory), SCALE)


@pytest.mark.parametrize("name", ["grouped scalar gates", "odd sizes", "channel write"])
def test_plain_step_equals_float64(name: str) -> None:
    *inputs, memory = step_arrays(CASES[name])
    output, memory = plain_step(StepInputs(*inputs), memory, SCALE)
    check_step(CASES[name], np.asarray(output), np.asarray(memory), SCALE)


@pytest.mark.parametrize("block_value", [1, 16, 64, 256])
def test_tiles_change_nothing_but_the_cut(block_value: int) -> None:
    case = CASES["odd sizes"]
    output, memory = interpreted(*step_arrays(case), tiles=StepTiles(block_value, 1))
    check_step(case, np.asarray(output), np.asarray(memory), SCALE)


@pytest.mark.parametrize("name", ["odd sizes", "grouped scalar gates"])
def test_a_step_is_one_kernel_and_edits_the_state_in_place(name: str) -> None:
    text = lowered_for_gpu(functools.partial(decode_step, scale=SCALE), *step_arrays(CASES[name]))
    calls = [line for line in text.splitlines() if "custom_call" in line]
    assert len(calls) == 1
    assert "gpu$xla.gpu.triton" in calls[0]
    assert aliases(calls[0]) == [("1", "6")]
    for copied in ("stablehlo.pad", "stablehlo.concatenate", "stablehlo.broadcast_in_dim"):
        assert copied not in text


@pytest.mark.parametrize("name", ["odd sizes", "odd key alone", "odd value alone", "plain"])
def test_what_is_stored_is_masked_as_what_was_loaded(name: str) -> None:
    # Interpret mode crops blocks that reach past an array, so it cannot miss the mask of a store;
    # a GPU would write over the next head.
    case = CASES[name]
    step = functools.partial(decode_step, scale=SCALE)
    kernel = pallas_kernel(jax.make_jaxpr(step)(*step_arrays(case)).jaxpr)
    loads, stores = (
        {eqn.invars[0]: mask_of(eqn) for eqn in kernel.eqns if eqn.primitive.name == primitive}
        for primitive in ("masked_load", "masked_swap")
    )
    refs = kernel.invars
    exact = name == "plain"
    for source, target in ((refs[2], refs[7]), (refs[6], refs[8])):  # value, output; the state
        assert (loads[source] is None) == exact
        assert stores[target] is loads[source]


@pytest.mark.parametrize(("channels", "block"), [(48, 32), (37, 8), (5, 8), (1, 4), (250, 32)])
def test_masks_cover_the_state_once(channels: int, block: int) -> None:
    sizes = StepSizes(1, 1, 3, 20, channels, 1, 1, 1)
    programs = sizes.programs(StepTiles(block, 1))
    covered = []
    for program in range(programs):
        rows, columns = tile_masks(sizes, block, jnp.int32(program))
        assert rows.tolist() == [True] * 20 + [False] * 12
        covered += columns.tolist()
    each = [True] * channels + [False] * (len(covered) // 3 - channels)
    assert covered == each * 3


def pallas_kernel(jaxpr: Any) -> Any:
    """The body of the one Pallas kernel in a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            return eqn.params["jaxpr"]
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            found = pallas_kernel(inner) if hasattr(inner, "eqns") else None
            if found is not None:
                return found
    return None


def mask_of(eqn: Any) -> Any:
    """The mask of a load (ref, indices, mask, other) or a store (ref, indices, value, mask)."""
    arguments = eqn.params["args_tree"].unflatten(eqn.invars)
    return arguments[2 if eqn.primitive.name == "masked_load" else 3]


def aliases(call: str) -> list[tuple[str, str]]:
    """Pairs of (output, operand) that share a buffer."""
    return re.findall(r"output_tuple_indices = \[(\d+)\],\s*operand_index = (\d+)", call)


@pytest.mark.parametrize("name", ["grouped scalar gates", "channel write", "odder sizes"])
def test_gradients_equal_those_of_recurrent(name: str) -> None:
    arrays = step_arrays(CASES[name])
    rng = np.random.default_rng(1)
    weights = [jnp.asarray(rng.standard_normal(arrays[i].shape), jnp.float32) for i in (2, 6)]

    def loss(step: Callable, *arrays: jax.Array) -> jax.Array:
        output, memory = step(*arrays)
        return jnp.sum(weights[0] * output) + jnp.sum(weights[1] * memory)

    def recurrent(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        token = [x[:, None] for x in arrays[:6]]
        output, memory = carve_jax.gated_delta_rule(
            *token, scale=SCALE, initial_state=arrays[6], implementation="recurrent"
        )
        return output[:, 0], memory

    every = tuple(range(7))
    ours, theirs = (
        jax.jit(jax.grad(functools.partial(loss, step), every))(*arrays)
        for step in (interpreted, recurrent)
    )
    for got, expected in zip(ours, theirs, strict=True):
        # Two orders of summation: entries that nearly cancel share the rounding of the largest.
        largest = float(jnp.abs(expected).max())
        assert largest > 0
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6 * largest)


def test_steps_in_a_row_equal_one_call_of_recurrent() -> None:
    case = CASES["grouped values"]
    tokens = [[jnp.asarray(x) for x in make_step(case, seed)[:6]] for seed in range(3)]
    memory = step_arrays(case)[6]
    sequence = [jnp.stack(x, axis=1) for x in zip(*tokens, strict=True)]
    expected, last = carve_jax.gated_delta_rule(
        *sequence, scale=SCALE, initial_state=memory, implementation="recurrent"
    )
    for t, token in enumerate(tokens):
        output, memory = interpreted(*token, memory)
        np.testing.assert_allclose(output, expected[:, t], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(memory, last, rtol=1e-5, atol=1e-5)


def test_default_tiles_fill_the_chip() -> None:
    def tiles(batch: int, heads: int, channels: int) -> StepTiles:
        return default_tiles(StepSizes(batch, heads, heads, *[channels] * 5))

    assert tiles(512, 16, 128) == StepTiles(32, 4)
    assert tiles(1, 16, 128) == StepTiles(16, 4)
    assert tiles(1, 16, 256) == StepTiles(16, 8)
    assert tiles(512, 16, 256) == StepTiles(32, 8)
    assert tiles(1, 1, 1) == StepTiles(1, 1)


def replaced(index: int, array: jax.Array) -> list[jax.Array]:
    arrays = step_arrays(CASES["plain"])
    arrays[index] = array
    return arrays


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        (replaced(0, jnp.zeros((2, 2, 16))), ValueError, r"query has shape \(2, 2, 16\)"),
        (replaced(2, jnp.zeros((2, 3, 32))), ValueError, "multiple of those of key"),
        (replaced(3, jnp.zeros((2, 2, 2))), ValueError, r"log_decay .* or \(2, 2, 1\)"),
        (replaced(5, jnp.zeros((2, 2))), ValueError, "write .* expected rank 3"),
        (replaced(6, jnp.zeros((2, 2, 32, 16))), ValueError, "memory has shape"),
        (replaced(6, jnp.zeros((2, 2, 32, 32), jnp.bfloat16)), TypeError, "memory is bfloat16"),
        (replaced(4, jnp.zeros((2, 2, 32), int)), NotImplementedError, "erase is int32"),
        (step_arrays(StepCase(1, 1, 1, 300, 16)), NotImplementedError, "key has 300 channels"),
    ],
)
def test_bad_input_is_refused(arrays: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        interpreted(*arrays)


def test_bad_backends_and_tiles_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = step_arrays(CASES["plain"])
    with pytest.raises(ValueError, match="unknown backend 'mosaic'; allowed are 'pallas'"):
        decode_step(*arrays, scale=SCALE, backend="mosaic")
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        decode_step(*arrays, scale=SCALE, backend="triton", interpret=True)
    with pytest.raises(ValueError, match="block_value is 24"):
        StepTiles(24, 4)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotImplementedError, match=r"pip install 'carve_jax\[gpu\]'"):
        decode_step(*arrays, scale=SCALE, backend="triton")


@needs_triton
def test_triton_without_gpu_support_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # "installed"
    monkeypatch.setitem(sys.modules, "jax_triton", None)  # but it does not load
    with pytest.raises(NotImplementedError, match="JAX with GPU support"):
        decode_step(*step_arrays(CASES["plain"]), scale=SCALE, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_output_in_a_dtype_of_choice(dtype: str) -> None:
    arrays = step_arrays(CASES["odd sizes"])  # bfloat16
    output, memory = interpreted(*arrays, output_dtype=dtype)
    assert output.dtype == dtype
    arrays[2] = arrays[2].astype(jnp.float32)
    exact, expected = interpreted(*arrays)
    np.testing.assert_array_equal(output, exact.astype(dtype))
    np.testing.assert_array_equal(memory, expected)
    grad = jax.grad(lambda v: interpreted(*arrays[:2], v, *arrays[3:], output_dtype=dtype)[0].sum())
    assert grad(arrays[2]).dtype == jnp.float32


def test_an_output_dtype_that_no_kernel_gives() -> None:
    with pytest.raises(NotImplementedError, match="output_dtype is int32; allowed are bfloat16"):
        interpreted(*step_arrays(CASES["plain"]), output_dtype="int32")


@needs_triton
@pytest.mark.parametrize("loop", ["scan", "fori_loop", "while_loop"])
def test_triton_steps_in_a_loop(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """jax-triton hands back a list: its outputs must still fit the carry of a loop."""

    def triton_call(*arrays: jax.Array, **options: Any) -> list[jax.Array]:
        *inputs, memory = arrays
        dtype = options["out_shape"][0].dtype
        return list(plain_step(StepInputs(*inputs), memory, options["SCALE"], dtype))

    fake = types.SimpleNamespace(triton_call=triton_call)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "jax_triton", fake)
    *token, memory = step_arrays(CASES["grouped values"])
    step = functools.partial(decode_step, scale=SCALE, backend="triton")
    start = jnp.zeros_like(token[2]), memory

    def again(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return step(*token, carry[1])

    if loop == "scan":
        found, _ = jax.lax.scan(lambda carry, _: (again(carry), None), start, length=3)
    elif loop == "fori_loop":
        found = jax.lax.fori_loop(0, 3, lambda _, carry: again(carry), start)
    else:
        _, found = jax.lax.while_loop(
            lambda carry: carry[0] < 3, lambda carry: (carry[0] + 1, again(carry[1])), (0, start)
        )
    expected = start
    for _ in range(3):
        expected = interpreted(*token, expected[1])
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@needs_triton
def test_triton_kernel_is_right_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.kernels.interpret_triton"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("right:") == len(CASES) + 1


# Every case and every dtype by day, and by night every case in every dtype.
COMPILED = {
    *(("official", "bfloat16"), ("official", "float32"), ("odd sizes", "float16")),
    *(("grouped scalar gates", "bfloat16"), ("largest", "float32")),
}


@needs_triton
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(*each, marks=() if each in COMPILED else pytest.mark.slow)
        for each in itertools.product(
            ("official", "grouped scalar gates", "odd sizes", "largest"), DTYPES
        )
    ],
)
def test_triton_kernel_compiles_for_hopper(name: str, dtype: str, tmp_path: Path) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pallas_kernels.decode.triton_step import step_kernel

    sizes = sizes_of({**CASES, "official": OFFICIAL}[name])
    tiles = default_tiles(sizes)
    aot = aot_signature(sizes, tiles, dtype=dtype)
    assert aot.kernel == "pallas_kernels.decode.triton_step:step_kernel"
    types = aot.signature | dict.fromkeys(aot.constexprs, "constexpr")
    pointers = range(len(aot.signature))
    source = ASTSource(
        step_kernel, types, aot.constexprs, {(i,): [["tt.divisibility", 16]] for i in pointers}
    )
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        options = {"num_warps": aot.num_warps, "num_stages": aot.num_stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert len(compiled.asm["cubin"]) > 0
    assert compiled.metadata.shared < 227 * 1024
    # The state moves by 16 bytes per thread, and each of its elements once each way.
    elements = sizes.block_key * tiles.block_value
    wide = 4 * 32 * tiles.num_warps
    ptx = compiled.asm["ptx"]
    assert len(re.findall(r"st\.global\S*\.v4\.b32", ptx)) == max(1, elements // wide)


@needs_triton
def test_jax_triton_call_is_one_kernel_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    jax_triton = pytest.importorskip("jax_triton", exc_type=ImportError)
    call = functools.partial(jax_triton.triton_call, compute_capability=90)
    monkeypatch.setattr(jax_triton, "triton_call", call)
    step = functools.partial(decode_step, scale=SCALE, backend="triton")
    text = lowered_for_gpu(step, *step_arrays(CASES["odd sizes"]))
    calls = [line for line in text.splitlines() if "custom_call" in line]
    assert len(calls) == 1
    assert "triton_kernel_call" in calls[0]
    assert aliases(calls[0]) == [("1", "6")]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_compiled_kernels_equal_float64_in_place_and_repeat(name: str, backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("jax_triton", exc_type=ImportError)
    step = jax.jit(functools.partial(decode_step, scale=SCALE, backend=backend), donate_argnums=6)
    runs = []
    for _ in range(2):
        arrays = step_arrays(CASES[name])
        buffer = arrays[6].unsafe_buffer_pointer()
        output, memory = step(*arrays)
        assert memory.unsafe_buffer_pointer() == buffer
        runs.append((np.asarray(output), np.asarray(memory)))
    check_step(CASES[name], *runs[0], SCALE)
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tiles", [StepTiles(b, w) for b in (8, 16, 32, 64) for w in (1, 4, 8)])
def test_compiled_kernels_at_every_tile(tiles: StepTiles, backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("jax_triton", exc_type=ImportError)
    for name in ("largest", "odd value alone"):
        step = jax.jit(functools.partial(decode_step, scale=SCALE, backend=backend, tiles=tiles))
        output, memory = step(*step_arrays(CASES[name]))
        check_step(CASES[name], np.asarray(output), np.asarray(memory), SCALE)
