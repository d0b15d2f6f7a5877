"""Predicted times: the calibration holds, and the model bends where the chip does."""

import math

import numpy as np
import pytest
from scipy.optimize import least_squares

from pallas_kernels.compiling import predict
from pallas_kernels.compiling.chips import CHIPS, target_config

H100 = CHIPS["sm_90"]


def test_the_measured_kernels_are_predicted_as_stated() -> None:
    rows = predict.calibration(H100)
    assert len(rows) == 12
    errors = [row.error for row in rows]
    assert math.sqrt(sum(e * e for e in errors) / len(errors)) < 0.095
    assert max(map(abs, errors)) < 0.225
    assert max(abs(row.count_error) for row in rows) < 0.035
    compute_bound = [row for row in rows if row.prediction.code_ms > 2 * row.prediction.bytes_ms]
    assert len(compute_bound) == 7
    assert max(abs(row.error) for row in compute_bound) < 0.05


def test_the_constants_are_those_of_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("CYCLES", "WAIT_CYCLES", "SPILL_CYCLES")

    def errors(constants: np.ndarray) -> list[float]:
        for name, value in zip(names, constants, strict=True):
            monkeypatch.setattr(predict, name, float(value))
        return [math.log1p(row.error) for row in predict.calibration(H100)]

    stated = [getattr(predict, name) for name in names]
    fitted = least_squares(errors, [4.0, 20.0, 20.0], bounds=(0, 200)).x
    assert fitted[0] == pytest.approx(stated[0], rel=0.03)
    assert fitted[1:] == pytest.approx(stated[1:], rel=0.25)


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "expected"),
    [  # of the profiled kernels, as Nsight Compute says, and of what has no other limit
        (187, 8, 49152, (1, "registers")),
        (255, 8, 110592, (1, "registers")),
        (181, 8, 16384, (1, "registers")),
        (128, 8, 16384, (2, "registers")),
        (255, 4, 73728, (2, "registers")),
        (64, 4, 98304, (2, "shared")),
        (24, 8, 0, (8, "warps")),
        (24, 1, 0, (32, "blocks")),
    ],
)
def test_occupancy(registers: int, warps: int, shared: int, expected: tuple[int, str]) -> None:
    assert predict.occupancy(registers, warps, shared, H100) == expected


def code_ms(programs: int, blocks: int = 1, **executed: int) -> float:
    found = predict.predict(executed or {"float": 10_000}, 4, programs, blocks, 0, H100)
    assert found.total_ms == pytest.approx(found.code_ms)
    assert found.ipc <= predict.MOST_ISSUED + 1e-9
    return found.code_ms


def test_whole_waves() -> None:
    assert code_ms(1) == code_ms(128) == code_ms(132) == pytest.approx(code_ms(133) / 2)
    assert code_ms(264, blocks=2) == code_ms(132)  # two blocks hide each other's cycles
    assert code_ms(132, blocks=2) == code_ms(132)
    assert code_ms(132 * 16, blocks=16) > code_ms(132)  # up to what an SM issues


def test_waiting_costs_more_than_working() -> None:
    base = code_ms(132, float=10_000)
    assert code_ms(132, float=9_000, barrier=1_000) > base
    assert code_ms(132, float=9_000, tensor=1_000) == code_ms(132, float=9_000, barrier=1_000)
    assert code_ms(132, float=9_000, spill=1_000) > code_ms(132, float=9_000, barrier=1_000)


def test_bytes_bound() -> None:
    found = predict.predict({"float": 100}, 4, 132, 1, 2_970_000_000, H100)
    assert found.bytes_ms == pytest.approx(1.0)
    assert found.bound == "bytes"
    assert 1.0 < found.total_ms < 1.01


def test_chips_are_told_to_xla() -> None:
    for arch, chip in CHIPS.items():
        text = target_config(arch)
        assert f"shared_memory_per_block_optin: {chip.shared_bytes}\n" in text
        assert chip.shared_bytes + predict.BLOCK_RESERVED == chip.shared_bytes_sm
        major, minor = arch.removeprefix("sm_")[:-1], arch[-1]
        assert f"{{ major: {major} minor: {minor}" in text
        assert chip.capability == float(f"{major}.{minor}")
