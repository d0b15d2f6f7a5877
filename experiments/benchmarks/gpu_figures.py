"""From seconds to what they mean: ratios, shares of the machine's floors, and the targets.

Nothing here touches a device, so that figures of several processes can be set beside each other.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.measuring.floors import floors
from experiments.measuring.rule_calls import DIRECTIONS, LAYER, RULES, Shape
from experiments.measuring.timing import ratio
from pallas_kernels import tiling


def shape_figures(
    shape: Shape,
    dtype: str,
    seconds: Mapping[str, float],
    rules: Mapping[str, str],
    ceilings: Mapping[str, float],
) -> dict[str, Any]:
    """What a shape's seconds come to; floors are those of the least tile a tensor core takes.

    Args:
      shape, dtype: of the inputs.
      seconds: of a call, by contender and direction: "gdn2 pallas, forward".
      rules: "gdn2" or "carve", by contender; those of other rules have no share.
      ceilings: the machine's "flop_per_second" and "bytes_per_second".
    """
    least = {
        f"{rule}, {direction}": floors(
            shape, rule, direction, dtype, ceilings, tile=tiling.SMALLEST
        )
        for rule in RULES
        for direction in DIRECTIONS
    }
    shares = {}
    for name, value in seconds.items():
        who, direction = name.rsplit(", ", 1)
        if who in rules:
            floor = least[f"{rules[who]}, {direction}"]
            bound = max(floor["arithmetic_seconds"], floor["bytes_seconds"])
            shares[name] = round(bound / value, 4)
    return {
        "ratios": _ratios(seconds),
        "median_seconds": seconds,
        "roofline_share": shares,
        "floors": least,
    }


def _ratios(seconds: Mapping[str, float]) -> dict[str, float | None]:
    """Peers over ours, where more is better for us, and our contenders over each other."""
    pairs = (
        ("fla gdn2", "gdn2 pallas"),
        ("fla kda", "gdn2 pallas"),
        ("jla gdn2", "gdn2 pallas"),
        ("jla kda", "gdn2 pallas"),
        ("jla gdn", "gdn2 pallas"),
        ("gdn2 chunked", "gdn2 pallas"),
        ("gdn2 pallas walk", "gdn2 pallas"),
        ("gdn2 pallas, bounded", "gdn2 pallas"),
        ("carve pallas", "gdn2 pallas"),
        ("carve pallas, bounded", "carve pallas"),
        ("carve chunked", "carve pallas"),
    )
    return {
        f"{one} / {other}, {direction}": ratio(
            seconds, f"{one}, {direction}", f"{other}, {direction}"
        )
        for direction in DIRECTIONS
        for one, other in pairs
    }


class Target(NamedTuple):
    """A figure and what it should be; `measured` is None where something is missing."""

    what: str
    measured: float | None
    limit: float
    at_least: bool

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        """One line: what, the figure, the target, and whether it is met."""
        verdict = {None: "not measured", True: "met", False: "not met"}[self.met]
        figure = "-" if self.measured is None else f"{self.measured:.2f}"
        wish = f"{'at least' if self.at_least else 'at most'} {self.limit:.2f}"
        return f"{self.what:<58} {figure:>8}  {wish:<14} {verdict}"


def targets(figures: Mapping[str, Any], layer: Shape = LAYER) -> list[Target]:
    """The targets of the kernels (H100 or H200) beside what was measured."""
    part = figures["shapes"].get(layer.label, {"ratios": {}, "peak_bytes": {}})
    forward, both = DIRECTIONS
    step = figures.get("train_step", {})
    backends = figures.get("decode", {"batches": {}})["batches"].get("512", {}).values()
    decode = max((backend["share_of_copy"] for backend in backends), default=None)
    memory = ratio(part["peak_bytes"], f"carve pallas, {both}", f"gdn2 pallas, {both}")

    def at_layer(pair: str, direction: str) -> float | None:
        return part["ratios"].get(f"{pair}, {direction}")

    return [
        Target(f"fla gdn2 / gdn2, {forward}", at_layer("fla gdn2 / gdn2 pallas", forward), 2, True),
        Target(f"fla gdn2 / gdn2, {both}", at_layer("fla gdn2 / gdn2 pallas", both), 1.5, True),
        *(
            Target(f"jla gdn2 / gdn2, {way}", at_layer("jla gdn2 / gdn2 pallas", way), 1.0, True)
            for way in DIRECTIONS
        ),
        *(
            Target(
                f"carve / gdn2, {direction}",
                at_layer("carve pallas / gdn2 pallas", direction),
                1.1,
                False,
            )
            for direction in DIRECTIONS
        ),
        Target(f"carve / gdn2, peak bytes, {both}", memory, 1.0, False),
        Target("decode / copy, bytes per second, batch 512", decode, 0.7, True),
        Target("carve / gdn2, 1.3B train step", step.get("ratio"), 1.0, False),
        Target("carve / gdn2, 1.3B train step, peak", step.get("peak_bytes_ratio"), 1.0, False),
    ]


def print_shape(shape: Shape, part: Mapping[str, Any]) -> None:
    """Ratios first, then what they are made of and what is missing."""
    print(f"\n{shape.label}")
    for name, value in part["ratios"].items():
        if value is not None:
            print(f"  {name:<58} {value:>8.2f}")
    print(f"  {'':<44} {'median ms':>10} {'roofline':>9} {'peak MB':>9}")
    for name, value in part["median_seconds"].items():
        share = part["roofline_share"].get(name)
        print(
            f"  {name:<44} {1e3 * value:>10.3f} {'-' if share is None else f'{share:.0%}':>9} "
            f"{part['peak_bytes'][name] / 1e6:>9.0f}"
        )
    if "difference_from_fla_gdn2" in part:
        print(f"  outputs differ from fla's gdn2 by {part['difference_from_fla_gdn2']:.1e}")
    for name, reason in {**part["left_out"], **part.get("notes", {})}.items():
        print(f"  {name}: {reason}")
