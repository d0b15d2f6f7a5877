"""From the record to a table: ratios, shares of the machine's floors, targets, what is wrong."""

from collections.abc import Mapping
from typing import Any

from experiments.benchmarks.decode_steps import print_decode
from experiments.benchmarks.gpu import OURS, SHAPES, Plan, rules
from experiments.benchmarks.gpu_figures import Target, print_shape, shape_figures, targets
from experiments.benchmarks.train_steps import TrainPlan, compare_mixers
from experiments.benchmarks.train_steps import print_training as print_steps
from experiments.measuring.rule_calls import LAYER, RULES, Shape
from experiments.rented_gpu import step_table
from experiments.rented_gpu.record import Record

LONGEST_LIST = 12
NO_RATES = {"flop_per_second": float("inf"), "bytes_per_second": float("inf")}


def collect(record: Record) -> dict[str, Any]:
    """The figures of all tasks in the form of the gpu suite's, with the targets and what is wrong.

    Each process timed its own contenders: ratios between ours are of one process, those to peers
    of two, each alone on the card.
    """
    decode = record.figures("time/decode") or {}
    rates = decode.get("ceilings")
    figures: dict[str, Any] = {"targets": [], "wrong": wrong(record), "shapes": {}}
    for shape in SHAPES:
        timed = _timed(record, shape)
        if timed["median_seconds"]:
            figures["shapes"][shape.label] = _shape(shape, timed, rates)
    if rates:
        figures["ceilings"] = rates
    if "decode" in decode:
        figures["decode"] = decode["decode"]
    steps = {mixer: record.figures(f"train/{mixer}") for mixer in RULES}
    found = {mixer: part for mixer, part in steps.items() if part}
    if found:
        figures["train_step"] = compare_mixers(TrainPlan(), found)
    figures["step_table"] = step_table.collect(record)
    figures["targets"] = [t._asdict() | {"met": t.met} for t in targets(figures)]
    return figures


def wrong(record: Record) -> list[str]:
    """What the tasks on correctness found wrong, a sentence each."""
    sentences = []
    test = record.figures("correctness/self-test")
    if test and not test["passed"]:
        sentences.append(f"self-test: {test['said'][-1]}")
    tests = record.figures("correctness/kernel tests") or {}
    for name, message in tests.get("failures", {}).items():
        lines = message.strip().splitlines()
        sentences.append(f"{name}: {lines[-1] if lines else 'failed'}")
    return sentences


def _timed(record: Record, shape: Shape) -> dict[str, dict[str, Any]]:
    """All contenders of a shape, of whichever process."""
    names = [f"time/ours {shape.label}", f"time/chunked {shape.label}"]
    if shape == LAYER:
        names += [n for n in record.tasks if n.startswith(("time/jla ", "time/fla "))]
    merged: dict[str, dict[str, Any]] = {"median_seconds": {}, "peak_bytes": {}, "left_out": {}}
    for name in names:
        part = record.figures(name) or {}
        for key, found in merged.items():
            found.update(part.get(key, {}))
        if not record.done(name) and name in record.tasks:
            merged["left_out"][name.removeprefix("time/")] = record.tasks[name]["why"]
    return merged


def _shape(
    shape: Shape, timed: Mapping[str, Any], rates: Mapping[str, float] | None
) -> dict[str, Any]:
    plan = Plan(ours=dict(OURS))
    part = shape_figures(shape, plan.dtype, timed["median_seconds"], rules(plan), rates or NO_RATES)
    if rates is None:  # no share of what was not measured
        part.update(roofline_share={}, floors={})
    return {**part, "peak_bytes": timed["peak_bytes"], "left_out": timed["left_out"]}


def show(record: Record, figures: Mapping[str, Any], missing: Mapping[str, str]) -> None:
    """Prints it all: what is wrong first, what is missing last."""
    for sentence in figures["wrong"]:
        print(f"WRONG {sentence}")
    tests = record.figures("correctness/kernel tests")
    if tests:
        counts = ", ".join(f"{tests[key]} {key}" for key in ("passed", "failed", "skipped"))
        print(f"kernel tests: {counts}")
    for shape in SHAPES:
        if shape.label in figures["shapes"]:
            print_shape(shape, figures["shapes"][shape.label])
    if "decode" in figures:
        print_decode(figures["decode"])
    if "train_step" in figures:
        print_steps(figures["train_step"])
    step_table.show(figures["step_table"])
    for task in ("profile/ours", "profile/others"):
        _print_kernels(record.figures(task) or {})
    print()
    for target in figures["targets"]:
        print(Target(**{key: target[key] for key in Target._fields}))
    if missing:
        print(f"\nmissing, for another run: {len(missing)}")
    for name in list(missing)[:LONGEST_LIST]:
        print(f"  {name}: {missing[name]}")
    if len(missing) > LONGEST_LIST:
        print(f"  and {len(missing) - LONGEST_LIST} more, all in the record")


def _print_kernels(profiles: Mapping[str, Any]) -> None:
    for name, kernels in profiles.items():
        if "left_out" in kernels:
            print(f"\n{name}, by kernel: left out, {kernels['left_out']}")
            continue
        total = sum(kernel["seconds"] for kernel in kernels.values())
        print(f"\n{name}, by kernel: {1e3 * total:.3f} ms")
        for kernel, found in list(kernels.items())[:LONGEST_LIST]:
            print(f"  {kernel:<58} {1e3 * found['seconds']:>8.3f} ms  x{found['launches']:.0f}")
