"""What is read of XLA's dumps, the command that counts, and one kernel through all of it."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import aot
from pallas_kernels.compiling import catalogue, counts, toolchain, xla
from pallas_kernels.compiling.catalogue import Program
from pallas_kernels.compiling.lowering import Kernel

needs_xla = pytest.mark.skipif(xla.unsupported_reason() is not None, reason="needs the extra aot")

MODULE = """HloModule jit_train

%fused_convert (a: bf16[4,8]) -> f32[4,8] {
  ROOT %c.1 = f32[4,8]{1,0} convert(%a)
}

ENTRY %main.1 (x.1: bf16[4,8], s: f32[2]) -> f32[4,8] {
  %x.1 = bf16[4,8]{1,0} parameter(0), metadata={op_name="x"}
  %s = f32[2]{0} parameter(1)
  %pallas_call.12 = (bf16[4,8]{1,0}, f32[16]{0}) custom-call(%x.1, %s, /*index=2*/%x.1), custom_call_target="__gpu$xla.gpu.triton", output_to_operand_aliasing={{0}: (1, {})}, metadata={op_name="jit(train)/transpose(jvp())/pallas_call"}
  %pallas_call.9.0 = bf16[4,8]{1,0} get-tuple-element(%pallas_call.12), index=0
  %pallas_call.3 = f32[4,8]{1,0} custom-call(%pallas_call.9.0), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(train)/jvp()/pallas_call"}
  ROOT %loop_convert_fusion = f32[4,8]{1,0} fusion(%pallas_call.3), kind=kLoop, calls=%fused_convert
}
"""  # noqa: E501

LAUNCHES = """001: kCustomKernel [source       | next=002 (1)] _walk_kernel__1 grid: [8, 16, 2] threads: [256, 1, 1]  shared_memory: 32768 bytes
  002: kCustomKernel [prev=001 (1) | sink] loop_convert_fusion grid: [1, 1, 1] threads: [128, 1, 1]  shared_memory: 0 bytes
"""  # noqa: E501


def test_instructions_of_a_module() -> None:
    found = xla.read_instructions(MODULE)
    back, forward = found["pallas_call.12"], found["pallas_call.3"]
    assert (back.opcode, back.ours, back.read_bytes, back.written_bytes) == (
        *("custom-call", True),
        *(64, 64 + 64),  # x once; s is only continued
    )
    assert "transpose(" in back.origin
    assert (forward.read_bytes, forward.written_bytes) == (64, 128)
    fusion = found["loop_convert_fusion"]
    assert (fusion.ours, fusion.read_bytes, fusion.written_bytes) == (False, 128, 128)


def test_kernels_are_matched_in_the_order_of_the_program() -> None:
    kernels = [Kernel("first", "", 4, 1), Kernel("second", "", 4, 1)]
    instructions = xla.read_instructions(MODULE)
    assert xla.match_kernels(instructions, kernels) == {
        "pallas_call.3": kernels[0],
        "pallas_call.12": kernels[1],
    }
    with pytest.raises(RuntimeError, match="XLA launches 2 Pallas kernels, and the program"):
        xla.match_kernels(instructions, kernels[:1])


def test_launches() -> None:
    first, second = xla.read_launches(LAUNCHES)
    assert first == (1, "_walk_kernel__1", 256, 256, 32768)
    assert second == (2, "loop_convert_fusion", 1, 128, 0)
    text = 'thunk_info {\n    profile_annotation: "pallas_call.34"\n    thunk_id: 1\n  }'
    assert xla.read_annotations(text) == {1: "pallas_call.34"}


def test_missing_tools_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla, "PLUGINS", ("no_such_plugin",))
    reason = xla.unsupported_reason()
    assert reason is not None
    assert "pip install -e '.[aot]'" in reason
    with pytest.raises(FileNotFoundError, match=r"no_such_tool is not installed: pip install"):
        toolchain.tool("no_such_tool")


def test_without_xla_the_command_says_what_to_install(monkeypatch, capfd) -> None:
    monkeypatch.setattr(xla, "PLUGINS", ("no_such_plugin",))
    assert aot.main(["--compiler=xla"]) == 2
    assert "XLA for a GPU is not installed: pip install" in capfd.readouterr().err
    assert aot.main(["--compiler=cuda"]) == 2
    assert "--compiler=cuda is not known; choose from xla, triton" in capfd.readouterr().err


def sums_of_products(left, right, total):
    def add(i, carry):
        rows = pl.ds(16 * i, 16)
        return carry + jnp.dot(left[rows, :].T, right[rows, :])

    total[...] = jax.lax.fori_loop(0, left.shape[0] // 16, add, jnp.zeros(total.shape))


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Rows of 16 multiplied and added up by one program, then doubled by XLA."""
    shape = jax.ShapeDtypeStruct((left.shape[1], right.shape[1]), jnp.float32)
    params = plgpu.CompilerParams(num_warps=4, num_stages=1)
    return 2.0 * pl.pallas_call(sums_of_products, shape, compiler_params=params)(left, right)


def program(rows: int) -> Program:
    operand = jax.ShapeDtypeStruct((rows, 64), jnp.bfloat16)
    return Program("product", f"r{rows}", "bfloat16", product, (operand, operand), 2, rows // 64)


@needs_xla
def test_one_kernel_through_xla(capfd, monkeypatch, tmp_path: Path) -> None:
    short, long = (counts.count(program(rows), "sm_90") for rows in (1024, 2048))
    assert (short.error, long.error) == ("", "")
    (a,), (b,) = short.kernels, long.kernels
    assert (a.kernel, a.phase, a.warps, a.programs, a.launches) == (
        *("sums_of_products", "forward"),
        *(4, 1, 2),
    )
    assert (a.loops, b.loops) == ((64,), (128,))
    assert 64 * 8 * 4 < a.instructions < b.instructions < 2.1 * a.instructions
    assert a.executed["tensor"] >= 64
    assert a.per_span == 2 * a.instructions // 16
    assert [step.moved_bytes for step in short.steps] == [2 * 2 * 64 * 64 * 4]
    assert "sums_of_products" in counts.table([short])
    assert f"{a.instructions:,}" in counts.categories([short])


@needs_xla
def test_record_and_check(monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.setattr(aot, "BUDGETS", tmp_path / "budgets.json")
    monkeypatch.setattr(catalogue, "counted", lambda *_: [program(1024)])
    assert aot.main(["--compiler=xla", "--check"]) == 1
    assert "not recorded" in capfd.readouterr().err
    assert aot.main(["--compiler=xla", "--record"]) == 0
    assert aot.main(["--compiler=xla", "--check"]) == 0
    record = json.loads(aot.BUDGETS.read_text())
    (row,) = record["kernels"].values()
    row["registers"] -= 1
    aot.BUDGETS.write_text(json.dumps(record))
    capfd.readouterr()
    assert aot.main(["--compiler=xla", "--check"]) == 1
    assert (
        f"{row['registers'] + 1} registers, recorded {row['registers']}" in capfd.readouterr().err
    )


def test_what_does_not_compile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Callable:
        raise RuntimeError("no such\nchip")

    monkeypatch.setattr(xla, "compile_program", refuse)
    found = counts.count(program(64), "sm_90")
    assert found.error == "RuntimeError: no such chip"
    assert "FAILED" in counts.table([found])
