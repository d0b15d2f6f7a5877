"""CARVE without waiting in time: guess all contents, run GDN-2, read the contents off, again.

Given the contents of all gate chunks, CARVE is GDN-2 with b known beforehand, which runs in
parallel. A sweep is one such pass, from the contents that the sweep before it gave, the first from
none. The content of chunk c follows from outputs of chunks before c alone, so the map from contents
to contents is strictly lower triangular in the chunks, and its differences are nilpotent: a sweep
makes one more chunk right at least, whatever the weights, and N sweeps all N. How many it takes to
agree to bfloat16's precision is measured; what a sweep may cost follows from the kernels' times.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from configs import content_erase
from experiments.theory.figures import INK, label, legend, panels, style
from experiments.theory.finding import Check, Experiment, Finding, Number
from experiments.theory.sweeping import PRECISION, Course, course, random_problem, relay, trained

EXACT = 1e-5  # of float32, over a long sequence
FEW = 4  # sweeps
# Milliseconds, predicted for an H100 at T 4096 H16 K=V=128 bfloat16 (README, "GPU kernels"), of
# CARVE's scan and of GDN-2, which is a sweep.
PREDICTED = {
    "forward, 8 rows": (1.9, 1.4),
    "forward, 1 row": (0.77, 0.35),
    "forward and backward, 8 rows": (7.9, 5.7),
    "forward and backward, 1 row": (2.0, 1.2),
}


class Sizes(NamedTuple):
    """What is measured.

    Attributes:
      length, rows, width: of random inputs; K = V = width.
      chunks: L of them.
      strengths: root mean square of the logits' shift.
      relay: gate chunks of the worst case.
      steps: of training on content-dependent erase; 0 for no trained layer.
    """

    length: int
    rows: int
    width: int
    chunks: tuple[int, ...]
    strengths: tuple[float, ...]
    relay: int
    steps: int


FULL = Sizes(1024, 2, 32, (16, 64, 256), (0.1, 0.3, 1.0, 3.0, 10.0), 32, 1000)
QUICK = Sizes(128, 1, 8, (16,), (0.1, 1.0), 8, 0)
ERASE = "trained on content-dependent erase"


class Measured(NamedTuple):
    """What was found.

    Attributes:
      random: by L and strength, of random inputs.
      longer: by N, L the middle one, strength 1.
      mixed: by strength, L the middle one, by Anderson's mixing.
      relay: the worst case.
      layers: of each trained model's layers.
    """

    random: dict[tuple[int, float], Course]
    longer: dict[int, Course]
    mixed: dict[float, Course]
    relay: Course
    layers: dict[str, list[Course]]


def find(sizes: Sizes) -> Measured:
    """Sweeps of every problem."""
    length, rows, width = sizes.length, sizes.rows, sizes.width
    middle = sizes.chunks[len(sizes.chunks) // 2]
    problems = {
        (chunk, strength): random_problem(length, chunk, strength, rows, width)
        for chunk in sizes.chunks
        for strength in sizes.strengths
    }
    lengths = [length // 4, length, 4 * length] if sizes.steps else [length]
    layers = {}
    if sizes.steps:  # training takes most of the time
        layers[ERASE] = trained(content_erase.get_config(), sizes.steps)
    return Measured(
        {which: course(problem) for which, problem in problems.items()},
        {n // middle: course(random_problem(n, middle, 1.0, rows, width)) for n in lengths},
        {s: course(problems[middle, s], mixed=True) for s in sizes.strengths},
        course(relay(sizes.relay), to_the_end=True),
        {name: [course(problem) for problem in each] for name, each in layers.items()},
    )


def checks_of(found: Measured) -> tuple[Check, ...]:
    """The claim, part by part."""
    layers = [each for of_model in found.layers.values() for each in of_model]
    plain = [*found.random.values(), *found.longer.values(), found.relay, *layers]
    small = {s: c for (_, s), c in found.random.items() if s <= 1}
    wanted = max((c.needed for c in layers), default=max(c.needed for c in small.values()))
    scan, one = PREDICTED["forward, 1 row"]
    return (
        Check("first n gate chunks after n sweeps, largest error of all problems",
              max(c.prefix for c in plain), at_most=EXACT),
        Check("worst case, error after as many sweeps as gate chunks", found.relay.errors[-1],
              at_most=EXACT),
        Check("most sweeps of random inputs, logits shifted by 1 at most",
              max(c.needed for c in small.values()), at_most=FEW),
        Check("most sweeps over the least as the row grows, shift 1",
              max(c.needed for c in found.longer.values())
              / min(c.needed for c in found.longer.values()), at_most=1.5),
        *([Check("most sweeps of a trained layer", max(c.needed for c in layers), at_most=FEW)]
          if layers else []),
        Check("most sweeps of random inputs at any strength",
              max(c.needed for c in found.random.values()), at_most=FEW, edge=True),
        Check("worst case, sweeps over gate chunks", found.relay.needed / found.relay.chunks,
              at_most=0.5, edge=True),
        Check("sweeps that are wanted over those that take the time of the scan, one row over 8 "
              "devices, predicted", wanted / shard_break_even(8), at_most=1),
        Check("the same, one row on one device", wanted * one / scan, at_most=1, edge=True),
    )  # fmt: skip


def shard_break_even(devices: int, rows: int = 1) -> float:
    """Sweeps that take the time of the scan where a sequence lies on so many devices, forward.

    CARVE hands its state along, (rows + devices − 1) / rows times the time of a shard; a sweep
    carries K channels beside V and so costs twice GDN-2 (`ops.gated_delta.context_parallel`).
    """
    scan, one = PREDICTED["forward, 1 row"]
    return (rows + devices - 1) / rows * scan / (2 * one)


def numbers_of(found: Measured) -> Iterator[Number]:
    """The numbers for the report."""
    for (chunk, strength), each in found.random.items():
        name = f"sweeps, L {chunk}, {each.chunks} chunks, shift {strength:g}"
        yield Number(name, each.needed, "sweeps")
        yield Number(f"error after one sweep, L {chunk}, shift {strength:g}", each.errors[0])
    for chunks, each in found.longer.items():
        yield Number(f"sweeps, {chunks} chunks, shift 1", each.needed, "sweeps")
    for strength, each in found.mixed.items():
        yield Number(f"sweeps by Anderson's mixing, shift {strength:g}", each.needed, "sweeps")
    yield Number(f"sweeps, worst case of {found.relay.chunks} chunks", found.relay.needed, "sweeps")
    for name, layers in found.layers.items():
        for index, each in enumerate(layers):
            what = f"{name}, layer {index}, {each.chunks} chunks"
            yield Number(f"sweeps, {what}", each.needed, "sweeps")
            yield Number(f"error after one sweep, {what}", each.errors[0])
    for what, (scan, one) in PREDICTED.items():
        yield Number(f"sweeps in the time of the scan, {what}, predicted", scan / one, "sweeps")
    for devices in (2, 8, 32):
        what = f"one row over {devices} devices, forward, predicted"
        yield Number(f"sweeps in the time of the scan, {what}", shard_break_even(devices), "sweeps")


def measure(quick: bool) -> Finding:
    """How many sweeps it takes, and whether so many are worth it."""
    sizes = QUICK if quick else FULL
    found = find(sizes)
    at_one = max(c.needed for (_, s), c in found.random.items() if s == 1)
    strongest = max(c.needed for (_, s), c in found.random.items() if s == sizes.strengths[-1])
    gain = PREDICTED["forward, 1 row"][0] / PREDICTED["forward, 1 row"][1]
    layers = [each.needed for of_model in found.layers.values() for each in of_model]
    beyond = sizes.strengths[-1]
    more = "" if beyond == 1 else f", {strongest} where by {beyond:g}"
    learnt = f", {max(layers)} in a trained layer" if layers else ""
    return Finding(
        title="CARVE can be swept in parallel, exactly, in a few sweeps",
        found=f"{at_one} sweeps agree to bfloat16 where content shifts logits by 1, in rows of "
        f"{' or '.join(map(str, found.longer))} gate chunks alike{more}{learnt}; "
        f"the scan takes the time of {gain:.1f} at one row on one "
        f"GPU, of {shard_break_even(8):.1f} where it lies on eight (predicted)",
        claim="Sweeps of GDN-2 under the contents of the sweep before make one more gate chunk "
        "exact each, so that N do for N chunks. To bfloat16's precision four do at random weights "
        "that shift logits by 1 and in trained layers, for any number of chunks, in less than the "
        "predicted time of the scan where a row lies on eight devices (core); also at any "
        "strength, in the worst case half of N, and in less than the scan's time on one (edges).",
        setup=f"random inputs of {sizes.rows} rows of {sizes.length} tokens, 2 heads of K = V = "
        f"{sizes.width}, L in {sizes.chunks}, shifts {sizes.strengths}, P_up normal; worst case of "
        f"{sizes.relay} chunks; a layer trained {sizes.steps} steps on content-dependent erase; "
        "enough is a largest error of a token of 2^-8 of the root mean square; float32, seed 0",
        checks=checks_of(found),
        numbers=tuple(numbers_of(found)),
        curves={"found": found},
    )


def draw(figure: Figure, finding: Finding) -> None:
    """Error by sweep; sweeps by strength, with what the scan costs."""
    found: Measured = finding.curves["found"]
    left, right = panels(figure, 2, lines=4)
    middle = sorted({chunk for chunk, _ in found.random})
    chosen = middle[len(middle) // 2]
    curves = {f"random, shift {s:g}": c for (n, s), c in found.random.items() if n == chosen}
    curves |= {name: layers[0] for name, layers in found.layers.items()}
    curves[f"worst case, {found.relay.chunks} chunks"] = found.relay
    for index, (name, each) in enumerate(curves.items()):
        errors = np.array(each.errors)
        errors[errors < 1e-8] = np.nan  # equal to the last bit: no place on this scale
        look = style(index, of=len(curves))
        left.plot(np.arange(1, len(errors) + 1), errors, label=name, **look)
    left.axhline(PRECISION, color=INK, linestyle=":", label="bfloat16")
    left.set_yscale("log")
    legend(left)
    label(left, "sweeps", "largest error of a token", f"Error, L = {chosen}")
    for index, chunk in enumerate(middle):
        needed = {s: c.needed for (n, s), c in found.random.items() if n == chunk}
        look = style(index, of=len(middle) + 1)
        right.plot(list(needed), list(needed.values()), label=f"L = {chunk}", **look)
    mixed = {s: c.needed for s, c in found.mixed.items()}
    name = f"L = {chosen}, Anderson's mixing"
    look = style(len(middle), of=len(middle) + 1)
    right.plot(list(mixed), list(mixed.values()), label=name, **look)
    for line, what in (("--", "forward, 1 row"), (":", "forward, 8 rows")):
        scan, one = PREDICTED[what]
        right.axhline(scan / one, color=INK, linestyle=line, label=f"time of the scan, {what}")
    right.set_xscale("log")
    legend(right)
    label(
        right, "shift of the logits, root mean square", "sweeps", "Sweeps to bfloat16's precision"
    )


EXPERIMENT = Experiment(measure, draw)
