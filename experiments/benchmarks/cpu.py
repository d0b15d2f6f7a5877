"""The cpu suite: plain XLA against ejkernel and the oracle, and growth with the length."""

from typing import Any

from experiments.measuring.floors import floors
from experiments.measuring.rule_calls import DIRECTIONS, TILE, Shape, ours
from experiments.measuring.timing import Contender, machine_ceilings, median_seconds, ratio
from experiments.peers import ejkernel


def cpu_suite(repeats: int) -> dict[str, Any]:
    """Forward and backward at T 2048 against the peer and the oracle, then growth to T 16384."""
    shape, long = Shape(1, 2048, 4, 64), Shape(1, 16384, 4, 64)
    ceilings = machine_ceilings(repeats)
    contenders: dict[str, Contender] = {
        "gdn2 chunked": ours(shape, "gdn2", "chunked"),
        "carve chunked": ours(shape, "carve", "chunked"),
        "gdn2 recurrent": ours(shape, "gdn2", "recurrent"),
        "gdn2 chunked forward": ours(shape, "gdn2", "chunked", backward=False),
        "carve chunked forward": ours(shape, "carve", "chunked", backward=False),
    }
    notes = {}
    peer = ejkernel(shape)
    if isinstance(peer, str):
        notes["ejkernel"] = peer
        print(f"ejkernel: {peer}")
    else:
        contenders["ejkernel gdn"] = peer
    seconds = median_seconds(contenders, repeats)

    growth = {"gdn2": {}, "carve": {}}  # type: dict[str, dict[str, float]]
    for rule, figures in growth.items():
        pair = {"short": contenders[f"{rule} chunked"], "long": ours(long, rule, "chunked")}
        times = median_seconds(pair, max(3, repeats // 2))
        figures["time_ratio"] = round(times["long"] / times["short"], 3)
        figures["memory_ratio"] = round(pair["long"].peak_bytes / pair["short"].peak_bytes, 3)

    ratios = {
        "gdn2 chunked / ejkernel gdn": ratio(seconds, "gdn2 chunked", "ejkernel gdn"),
        "gdn2 recurrent / gdn2 chunked": ratio(seconds, "gdn2 recurrent", "gdn2 chunked"),
        "carve chunked / gdn2 chunked": ratio(seconds, "carve chunked", "gdn2 chunked"),
    }
    least = floors(shape, "gdn2", DIRECTIONS[1], "float32", ceilings, tile=TILE)
    print_table(ratios, growth, seconds, contenders, least)
    return {
        "shape": {**shape._asdict(), "dtype": "float32", "pass": "forward and backward"},
        "ratios": ratios,
        "growth_2048_to_16384": growth,
        "median_seconds": seconds,
        "peak_bytes": {name: c.peak_bytes for name, c in contenders.items()},
        "floor_gdn2": least,
        "ceilings": ceilings,
        "repeats": repeats,
        "skipped": notes,
    }


def print_table(
    ratios: dict[str, float | None],
    growth: dict[str, dict[str, float]],
    seconds: dict[str, float],
    contenders: dict[str, Contender],
    least: dict[str, float],
) -> None:
    """Ratios first, then what they are made of."""
    for name, value in ratios.items():
        print(f"{name:<34} {'skipped' if value is None else f'{value:.2f}':>10}")
    for rule, figures in growth.items():
        for what, value in figures.items():
            print(f"{rule + ' T 2048→16384, ' + what.replace('_', ' '):<34} {value:>10.2f}")
    print(f"\n{'T 2048':<34} {'median ms':>10} {'peak MB':>10}")
    for name, value in seconds.items():
        print(f"{name:<34} {1e3 * value:>10.2f} {contenders[name].peak_bytes / 1e6:>10.1f}")
    print(f"{'floor of gdn2, arithmetic':<34} {1e3 * least['arithmetic_seconds']:>10.2f}")
    print(f"{'floor of gdn2, bytes':<34} {1e3 * least['bytes_seconds']:>10.2f}")
