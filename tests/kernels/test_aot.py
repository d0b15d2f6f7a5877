"""The ahead-of-time compiler: what it reports of small kernels, and what it fails on."""

import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import aot, device
from pallas_kernels.compiling import catalogue, lowering, pip_triton, report
from pallas_kernels.compiling.catalogue import Program, TritonProgram
from pallas_kernels.compiling.chips import CHIPS
from pallas_kernels.compiling.pip_triton import Request, Resources
from pallas_kernels.compiling.report import Row

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402


def dot_kernel(left, right, product):
    exact = jnp.dot(left[...], right[...], preferred_element_type=jnp.float32)
    product[...] = exact.astype(product.dtype)


def sum_kernel(left, right, total):
    total[...] = left[...] + right[...]


@triton.jit
def scale_kernel(source, target, factor, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tl.store(target + index, tl.load(source + index) * factor)


class Crasher:
    """Stands for a kernel on which the compiler takes its process down."""

    @property
    def arg_names(self) -> list[str]:
        os._exit(1)


CRASHER = Crasher()
HERE = "tests.kernels.test_aot"


def kernel_program(
    name: str = "dot",
    kernel: Callable[..., None] = dot_kernel,
    shape: tuple[int, int, int] = (64, 64, 64),
    num_warps: int = 4,
) -> Program:
    """One call of a kernel on bfloat16 [M, N] and [N, K]; `shape` is M, N, K."""
    rows, inner, columns = shape

    def call(left: jax.Array, right: jax.Array) -> jax.Array:
        return pl.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct((rows, columns), left.dtype),
            compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=2),
        )(left, right)

    left = jax.ShapeDtypeStruct((rows, inner), jnp.bfloat16)
    right = jax.ShapeDtypeStruct((inner, columns), jnp.bfloat16)
    return Program(name, "small", "bfloat16", call, (left, right))


TOO_LARGE = kernel_program("large", shape=(64, 1024, 64), num_warps=8)  # operands of 256 KB
SPILLING = kernel_program(shape=(128, 16, 128), num_warps=1)  # 512 accumulators per thread
FITTING = kernel_program()
OUTCOMES: dict[Request, Any] = {}


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test of this file compiled, another need not compile again."""
    compile_all = pip_triton.compile_all

    def remembered(requests: Iterable[Request], workers: int) -> dict[Request, Any]:
        requests = list(requests)
        missing = [request for request in requests if request not in OUTCOMES]
        OUTCOMES.update(compile_all(missing, workers) if missing else {})
        return {request: OUTCOMES[request] for request in requests}

    for module in (pip_triton, report):
        monkeypatch.setattr(module, "compile_all", remembered)


def one(program: Program | TritonProgram, arch: str = "sm_90") -> Resources:
    """What the one kernel of a program takes."""
    [row] = report.report([program], arch, workers=1)
    assert isinstance(row.outcome, Resources), row.outcome
    return row.outcome


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs the command on given programs, with limits of its own in `tmp_path`."""
    monkeypatch.setattr(aot, "LIMITS", tmp_path / "limits.json")

    def run(programs: list[Program | TritonProgram], *flags: str) -> int:
        monkeypatch.setattr(catalogue, "programs", lambda *_: programs)
        return aot.main(["--compiler=triton", "--workers=1", *flags])

    return run


@pytest.mark.parametrize(
    ("arch", "family"),
    [
        *(("sm_86", "mma_sync"), ("sm_90", "wgmma"), ("sm_100", "tcgen05")),
        *(
            pytest.param(arch, "mma_sync", marks=pytest.mark.slow)
            for arch in ("sm_80", "sm_89", "sm_120")
        ),
    ],
)
def test_dot_uses_the_tensor_cores_of_each_chip(arch: str, family: str) -> None:
    taken = one(FITTING, arch)
    assert getattr(taken, family) == taken.tensor_core_instructions > 0
    assert 16 < taken.registers < 256
    assert taken.shared_bytes >= 2 * 64 * 64 * 2  # both operands
    assert (taken.tensor_memory_columns > 0) == (arch == "sm_100")
    assert (taken.stack_bytes, taken.spill_bytes) == (0, 0)
    assert taken.seconds > 0.01
    if arch == "sm_100":  # its loop that waits for tensor memory has no count
        assert taken.executed == {}
    else:
        assert 0 < taken.executed["tensor"] <= taken.tensor_core_instructions
        assert sum(taken.executed.values()) > 100


def test_every_card_the_kernels_take_is_compiled_for() -> None:
    assert {chip.capability for chip in CHIPS.values()} == set(device.CAPABILITIES)
    for chip in CHIPS.values():
        shipped = catalogue.programs(chip.device_kind, chip.capability)
        assert {p.dtype for p in shipped if p.name == "carve"} == set(catalogue.DTYPES)


def test_sum_uses_no_tensor_cores() -> None:
    taken = one(kernel_program("sum", sum_kernel))
    assert (taken.tensor_core_instructions, taken.shared_bytes) == (0, 0)


def test_triton_function() -> None:
    signature = {"source": "*fp32", "target": "*fp32", "factor": "fp32"}
    kernel = f"{HERE}:scale_kernel"
    program = TritonProgram("scale", "s512", "float32", kernel, signature, {"SIZE": 512}, 4, 1)
    [row] = report.report([program], "sm_90", workers=1)
    assert row.key == "sm_90/scale/scale_kernel/s512/float32"
    assert isinstance(row.outcome, Resources)
    assert row.outcome.registers > 8

    untyped = dataclasses.replace(program, signature={"source": "*fp32"})
    [row] = report.report([untyped], "sm_90", workers=1)
    assert "give each argument one of the two" in str(row.outcome)


def test_extraction_names_each_kernel_once() -> None:
    base, other = FITTING.function, kernel_program(num_warps=8).function

    def three_calls(left: jax.Array, right: jax.Array) -> jax.Array:
        return other(base(base(left, right), right), right)

    program = dataclasses.replace(FITTING, function=three_calls)
    first, second = lowering.extract_kernels(lowering.lower(program, "sm_90"))
    assert (first.name, second.name) == ("dot_kernel", "dot_kernel#2")
    assert (first.num_warps, second.num_warps) == (4, 8)
    assert "tt.dot" in first.ir_text


def test_equal_kernels_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(pip_triton, "compile_kernel", compiled.append)
    requests = [
        Request("a", 4, 2, "sm_90"),
        Request("a", 4, 2, "sm_90"),
        Request("a", 8, 2, "sm_90"),
    ]
    outcomes = pip_triton.compile_all(requests, workers=1)
    assert compiled == [requests[0], requests[2]]
    assert set(outcomes) == set(requests)


@pytest.mark.slow
def test_one_crash_fails_one_kernel() -> None:
    crash = Request(pip_triton.TritonFunction(f"{HERE}:CRASHER", ()), 4, 1, "sm_90")
    signature = (("source", "*fp32"), ("target", "*fp32"), ("factor", "fp32"))
    sound = pip_triton.TritonFunction(f"{HERE}:scale_kernel", signature, (("SIZE", 64),))
    outcomes = pip_triton.compile_all([crash, Request(sound, 4, 1, "sm_90")], workers=2)
    assert "crashed" in str(outcomes[crash])
    assert isinstance(outcomes[Request(sound, 4, 1, "sm_90")], Resources)


def test_what_cannot_compile_is_a_row_that_says_why() -> None:
    def fails(left: jax.Array, right: jax.Array) -> jax.Array:
        raise ValueError("no such tile")

    bad = dataclasses.replace(FITTING, name="bad", function=fails)
    plain = dataclasses.replace(FITTING, name="plain", function=jnp.dot)
    rows = report.report([bad, plain], "sm_90", workers=1)
    assert [str(row.outcome) for row in rows] == [
        "does not lower: ValueError: no such tile",
        "lowers to no Triton kernel at all",
    ]
    assert len(report.hardware_failures(rows)) == 2
    broken = Request("module { tt.nonsense }", 4, 2, "sm_90")
    assert isinstance(pip_triton.compile_all([broken], workers=1)[broken], str)
    with pytest.raises(ValueError, match="more than one program called"):
        report.report([FITTING, FITTING], "sm_90")


def test_check_fails_when_stack_grows(command: Callable[..., int], capfd) -> None:
    assert command([FITTING], "--check") == 1
    assert "run with --record" in capfd.readouterr().err
    assert command([FITTING], "--record") == 0
    assert command([FITTING], "--check") == 0
    assert command([SPILLING], "--check") == 1
    message = capfd.readouterr().err
    assert "error: sm_90/dot/dot_kernel/small/bfloat16" in message
    assert "bytes of stack, recorded 0" in message
    assert "bytes of spills, recorded 0" in message
    assert command([SPILLING], "--record") == 0
    assert command([SPILLING], "--check") == 0


def test_too_much_shared_memory_fails(command: Callable[..., int], capfd) -> None:
    assert command([TOO_LARGE], "--record") == 1
    assert not aot.LIMITS.exists()
    assert command([TOO_LARGE], "--check") == 1
    message = capfd.readouterr().err
    assert "sm_90/large/dot_kernel/small/bfloat16: needs 262144 bytes of shared memory" in message
    assert "has 232448" in message
    assert command([TOO_LARGE]) == 0


def test_table_and_json(command: Callable[..., int], capfd, tmp_path: Path) -> None:
    output = tmp_path / "aot.json"
    programs = [FITTING, kernel_program("sum", sum_kernel)]
    assert command(programs, "--programs=dot/", f"--output={output}", "--arch=sm_90,sm_80") == 0
    head, hopper, ampere = capfd.readouterr().out.splitlines()
    assert head.split()[7:9] == ["regs", "stack"]
    assert hopper.split()[:3] == ["sm_90", "dot", "dot_kernel"]
    assert "_wgmma" in hopper
    assert "_mma" in ampere
    kernels = json.loads(output.read_text())["kernels"]
    assert [(k["arch"], k["program"]) for k in kernels] == [("sm_90", "dot"), ("sm_80", "dot")]
    assert str(kernels[0]["registers"]) == hopper.split()[7]
    assert command(programs, "--programs=dot/", f"--output={tmp_path}/none/aot.json") == 2
    assert "cannot be written" in capfd.readouterr().err


def test_record_keeps_what_was_not_compiled() -> None:
    taken = Resources(32, 8, 24, 0, 0, 0, 0, 0, False, 1.0)
    row = Row("sm_90", "dot", "dot_kernel", "small", "bfloat16", 4, 2, taken)
    old = {"stack": 1, "spills": 1}
    before = {"kernels": {"sm_90/old/k/t/d": old, "sm_80/dot/k/t/d": old}}
    now = {"sm_90/dot/dot_kernel/small/bfloat16": {"stack": 8, "spills": 24}}
    whole = report.record([row], before, keep_others=False)["kernels"]
    assert whole == {"sm_80/dot/k/t/d": old, **now}
    part = report.record([row], before, keep_others=True)["kernels"]
    assert part == {**before["kernels"], **now}


def test_assembler_log() -> None:
    log = """ptxas info    : Function properties for step
    144 bytes stack frame, 260 bytes spill stores, 100 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers"""
    figures = {"registers": 255, "stack_bytes": 144, "spill_bytes": 360}
    assert pip_triton.read_assembler_log(log) == figures
    with pytest.raises(RuntimeError, match="no registers"):
        pip_triton.read_assembler_log("ptxas fatal")


def test_mistakes_are_told_in_a_sentence(
    command: Callable[..., int], capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command([FITTING], "--arch=sm_70") == 2
    assert "--arch=sm_70 is not known; choose from sm_80" in capfd.readouterr().err
    assert command([FITTING], "--programs=nothing") == 2
    assert "no program's name contains 'nothing'; there are: dot" in capfd.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command([FITTING]) == 2
    assert "pip install -e '.[dev]'" in capfd.readouterr().err
