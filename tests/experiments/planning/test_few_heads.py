"""The rules by rows × heads, and in stretches: as recorded where it is recorded."""

import json

import pytest

from experiments import cli, plan
from experiments.planning import few_heads
from experiments.planning.few_heads import SCAN_LAUNCH, STEP, predicted
from pallas_kernels.compiling.budgets import RECORD

KERNELS = json.loads(RECORD.read_text())["kernels"]


def recorded(program: str, size: str = "") -> list[float]:
    """Milliseconds of the forward pass and of both."""
    start = f"{program}/128x128c64{size}/bfloat16/"
    rows = {k.removeprefix(start): v["predicted_ms"] for k, v in KERNELS.items() if start in k}
    forward = sum(ms for kernel, ms in rows.items() if kernel.startswith("forward"))
    return [forward, sum(rows.values())]


@pytest.mark.parametrize(
    ("rule", "heads", "size"),
    [("gdn2", 128, ""), ("carve", 128, ""), ("gdn2", 64, "B4"), ("gdn2", 16, "B1")],
)
def test_a_recorded_size_takes_what_is_recorded(rule, heads, size):
    found = predicted(rule, heads, 4096)
    assert [found.forward, found.both] == pytest.approx(recorded(rule, size), rel=2e-3)


def test_recorded_stretches_take_that_and_what_is_assumed_besides():
    found = predicted("gdn2", 16, 4096, 8)
    forward, both = recorded("gdn2_stretches", "B1")
    states = 6 * 16 * 8 * 4 * 128 * 128 / 2.97e12 * 1e3
    composing = (2 * 6 + 3) * STEP + states
    assert found.stretches == 8
    assert found.forward == pytest.approx(forward + composing + 2 * SCAN_LAUNCH, rel=5e-3)
    assert found.both == pytest.approx(both + 2 * composing + 3 * SCAN_LAUNCH, rel=5e-3)


def test_stretches_save_where_programs_are_few_and_cost_where_they_are_many():
    few, many = (predicted("gdn2", heads, 32768) for heads in (2, 128))
    assert predicted("gdn2", 2, 32768, 16).both < few.both / 4
    assert predicted("gdn2", 128, 32768, 4).both > 1.3 * many.both


def test_what_is_chosen_is_nearly_the_best_and_never_much_worse_than_now():
    for length in few_heads.LENGTHS:
        for heads in few_heads.HEADS:
            now, chosen = (predicted("gdn2", heads, length, n) for n in (1, 0))
            assert chosen.forward < 1.05 * now.forward
            assert chosen.both < 1.08 * min(few_heads.best(heads, length, True).both, now.both)


def test_other_flags_are_refused(capsys):
    assert cli.call(plan.main, ["plan", "--few_heads", "--chip=a100"]) == 2
    assert (
        "--few_heads is of one H100 and known sizes, and takes no --chip" in capsys.readouterr().err
    )


def test_the_command_prints_and_writes_the_record(tmp_path, capsys):
    output = tmp_path / "few_heads.json"
    plan.main(["plan", "--few_heads", f"--output={output}"])
    record = json.loads(output.read_text())
    assert "nothing of it was measured" in record["source"]
    assert record["rules"]["128"]["gdn2"] == predicted("gdn2", 128, 4096)._asdict()
    assert len(record["stretches"]) == len(few_heads.LENGTHS) * len(few_heads.HEADS)
    row = next(r for r in record["stretches"] if (r["heads"], r["length"]) == (2, 32768))
    told = capsys.readouterr().out
    gain = row["now"]["both"] / row["both"]["both"]
    assert f"{row['both']['stretches']}: {gain:.2f}" in told
