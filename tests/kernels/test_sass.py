"""The walk through machine code: loops of known length are found, others are refused."""

import pytest

from pallas_kernels.compiling import counts, lowering, sass


def listing(*lines: str, name: str = "kernel") -> str:
    """A listing as `nvdisasm -c` prints it; lines that start with a dot are labels."""
    text, address = [f".text.{name}:"], 0
    for line in lines:
        if line.startswith("."):
            text.append(line)
        else:
            text.append(f"        /*{address:04x}*/                   {line} ;")
            address += 16
    return "\n".join(text)


def run(*lines: str) -> sass.Execution:
    (code,) = sass.parse(listing(*lines)).values()
    return sass.execute(code)


END = ("EXIT", ".L_x_9:", "BRA `(.L_x_9)", "NOP")


def test_counted_loop() -> None:
    found = run(
        *("MOV R2, 0x3", "IMAD.MOV.U32 R4, RZ, RZ, RZ", ".L_x_0:", "IADD3 R4, P1, R4, R2, RZ"),
        *("FFMA R5, R6, R7, R5", "ISETP.NE.U32.AND P0, PT, R4, 0x12c, PT", "@P0 BRA `(.L_x_0)"),
        *END,
    )
    assert [(loop.entries, loop.trips) for loop in found.loops] == [(1, 100)]
    assert found.instructions["float"] == 100
    assert found.total == 2 + 4 * 100 + 1  # the padding behind the end is not executed


def test_uniform_nested_loops_and_a_jump_over() -> None:
    found = run(
        *("UMOV UR4, URZ", ".L_x_0:", "CS2R R2, SRZ", ".L_x_1:", "VIADD R3, R3, 0x2"),
        *("MUFU.EX2 R9, R8", "ISETP.GE.AND P2, PT, R3, 0x8, PT", "@!P2 BRA `(.L_x_1)"),
        *("UIADD3 UR4, UR4, 0x1, URZ", "UISETP.LT.AND UP0, UPT, UR4, 0x5, UPT"),
        *("PLOP3.LUT P0, PT, PT, PT, UP0, 0x80, 0x8", "@!P0 BRA `(.L_x_2)"),
        *("SHFL.BFLY PT, R5, R6, 0x10, 0x1f", "BRA `(.L_x_0)", ".L_x_2:", *END),
    )
    assert found.instructions["special"] == 4 * 5
    assert found.instructions["shuffle"] == 4  # jumped over the last time
    assert {loop.trips for loop in found.loops} == {4, 5}


def test_carry_into_a_second_word() -> None:
    found = run(
        *("MOV R2, 0xfffffff0", "MOV R3, RZ", ".L_x_0:", "IADD3 R2, P1, R2, 0x8, RZ"),
        *("IMAD.X R3, RZ, RZ, R3, P1", "ISETP.NE.U32.AND P0, PT, R2, 0x20, PT"),
        *("ISETP.NE.AND.EX P0, PT, R3, 0x1, PT, P0", "@P0 BRA `(.L_x_0)", *END),
    )
    assert [loop.trips for loop in found.loops] == [6]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("LEA R4, R2, R3, 0x3", 6 * 8 + 5),
        ("IMAD R4, R2, R3, R2", 36),
        ("IADD3 R4, -R3, R2, 0x1", 2),
        ("SHF.L.U32 R4, R2, 0x2, RZ", 24),
        ("SHF.R.S32.HI R4, RZ, 0x1, R2", 3),
        ("LOP3.LUT R4, R2, R3, RZ, 0xc0, !PT", 6 & 5),
        ("LOP3.LUT R4, R2, R3, RZ, 0xfc, !PT", 6 | 5),
        ("SEL R4, R2, R3, PT", 6),
        ("SEL R4, R2, R3, !PT", 5),
        ("VIMNMX.U32 R4, R2, R3, PT", 5),
        ("SGXT.U32 R4, R2, 0x2", 2),
        ("R2UR UR4, R2", None),
    ],
)
def test_values_that_steer(line: str, value: int | None) -> None:
    tested = "UR4" if value is None else "R4"
    found = run(
        *("MOV R2, 0x6", "MOV R3, 0x5", "MOV R7, RZ", line, ".L_x_0:", "VIADD R7, R7, 0x1"),
        *(f"ISETP.NE.U32.AND P0, PT, R7, {tested}, PT", "@P0 BRA `(.L_x_0)", *END),
    )
    assert [loop.trips for loop in found.loops] == [value or 6]


def test_what_only_the_gpu_knows() -> None:
    jump = run("S2R R2, SR_TID.X", "ISETP.NE.AND P0, PT, R2, RZ, PT", "@P0 BRA `(.L_x_0)", "NOP",
               ".L_x_0:", *END)  # fmt: skip
    assert jump.assumed == {0x20}
    assert jump.total == 5
    loop = ("LDS R2, [R4]", ".L_x_0:", "FADD R6, R6, R7", "VIADD R2, R2, -0x1")
    with pytest.raises(
        sass.CountError, match=r"from 0x10 to 0x40 runs depends on P0, set by ISETP"
    ):
        run(*loop, "ISETP.NE.AND P0, PT, R2, RZ, PT", "@P0 BRA `(.L_x_0)", *END)


def test_what_kernels_load_to_steer_loops_is_a_zero() -> None:
    found = run(
        *("LDG.E R2, desc[UR4][R4.64]", "VIADD R2, R2, 0x6", ".L_x_0:", "VIADD R2, R2, -0x1"),
        *("ISETP.NE.AND P0, PT, R2, RZ, PT", "@P0 BRA `(.L_x_0)", *END),
    )
    assert [loop.trips for loop in found.loops] == [6]


def test_a_guard_that_is_not_known_makes_its_result_unknown() -> None:
    with pytest.raises(sass.CountError):
        run(
            *("S2R R2, SR_TID.X", "ISETP.NE.AND P1, PT, R2, RZ, PT", "MOV R3, 0x4"),
            *("@P1 MOV R3, 0x8", ".L_x_0:", "VIADD R3, R3, -0x1"),
            *("ISETP.NE.AND P0, PT, R3, RZ, PT", "@P0 BRA `(.L_x_0)", *END),
        )


def test_a_wide_result_overwrites_what_follows_its_register() -> None:
    with pytest.raises(sass.CountError):
        run(
            *("MOV R3, 0x4", "LDS.64 R2, [R8]", ".L_x_0:", "VIADD R3, R3, -0x1"),
            *("ISETP.NE.AND P0, PT, R3, RZ, PT", "@P0 BRA `(.L_x_0)", *END),
        )


def test_a_loop_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "MOST_STEPS", 1000)
    with pytest.raises(sass.CountError, match="does not end"):
        run(".L_x_0:", "FADD R1, R2, R3", "NOP", "BRA `(.L_x_0)", *END)


def test_calls_return() -> None:
    found = run("CALL.REL.NOINC `(.L_x_0)", "CALL.REL.NOINC `(.L_x_0)", "EXIT", ".L_x_0:",
                "MUFU.RCP R2, R3", "RET.REL.NODEC R4 `(kernel)")  # fmt: skip
    assert found.instructions["special"] == 2
    assert found.total == 7


def test_loops_are_held_against_those_written() -> None:
    ir_text = """
      %c0_i32 = arith.constant 0 : i32
      %c63_i32 = arith.constant 63 : i32
      %c1_i32 = arith.constant 1 : i32
      %9 = arith.addi %c63_i32, %c1_i32 : i32
      %10 = scf.for %arg9 = %c0_i32 to %9 step %c1_i32 iter_args(%a = %b) -> (f32)  : i32 {
      scf.for %arg9 = %unknown to %9 step %c1_i32  : i32 {
    """
    written = lowering.loop_trips(ir_text)
    assert written == [64]
    for trips in (64, 62, 32, 16):  # whole, pipelined, unrolled by 2 and by 4
        counts.check_loops([sass.Loop(0, 16, 1, trips)], written)
    for trips in (65, 50, 2):
        with pytest.raises(sass.CountError, match=r"and those written run \[64\] times"):
            counts.check_loops([sass.Loop(0, 16, 1, trips)], written)
