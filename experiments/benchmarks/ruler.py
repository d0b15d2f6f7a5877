"""The ruler suite: time and memory of a probe at 1,024 to 131,072 tokens of bytes.

What is measured is reading: a model that is not trained is asked, in prompts of each length, and
what it answers does not matter. Each pattern is asked in a process of its own. All lengths leave
the same rest when they are cut into chunks, so the first, asked twice, compiles for all.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from carve_jax.data import ByteTokenizer
from carve_jax.data.ruler.probes import PROBES
from carve_jax.evaluation.ruler.run import Asking, run_probe
from experiments.benchmarks.patterns import Plan, random_model
from experiments.measuring.memory import PeakResident, tree_bytes
from experiments.measuring.timing import in_fresh_process

PROBE = "niah_single_1"
ASKING = Asking(count=1, new_tokens=128, prefill_chunk=512)
PLAN = Plan(patterns=("carve", "gdn2", "carve+swa"), lengths=(1024, 8192, 32_768, 131_072))


def ruler_suite(save: Callable[[dict[str, Any]], None], plan: Plan) -> dict[str, Any]:
    """Every pattern of the plan; `save` is called with what there is so far."""
    figures: dict[str, Any] = {
        "plan": dataclasses.asdict(plan),
        "probe": PROBE,
        "asking": dataclasses.asdict(ASKING),
        "patterns": {},
    }
    print(
        f"{'pattern':<12} {'tokens':>8} {'seconds':>8} {'CPU s':>8} {'µs/token':>11} "
        f"{'cache KB':>9} {'RSS MB':>8}"
    )
    for name in plan.patterns:
        figures["patterns"][name] = in_fresh_process(measure, name, plan)
        print_pattern(name, figures["patterns"][name])
        save(figures)
    return figures


def measure(name: str, plan: Plan) -> dict[str, Any]:
    """Asks a random model of this pattern at each length.

    Returns:
      Under `lengths`: `seconds`, `cpu_seconds` of all threads, `cache_bytes` of one row, and
      `resident_bytes`, the most that the process held while it was asked. And the growth of the
      last two from the first length to the last, with `power`: time goes as length to this power,
      from the second to the last.
    """
    model, params = random_model(name, plan)
    ask = functools.partial(run_probe, model, params, ByteTokenizer(), PROBES[PROBE], asking=ASKING)
    ask(plan.lengths[0])
    lengths: dict[str, dict[str, float]] = {}
    for length in plan.lengths:
        start, cpu = time.perf_counter(), time.process_time()
        with PeakResident() as resident:
            ask(length)
        lengths[str(length)] = {
            "seconds": round(time.perf_counter() - start, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "cache_bytes": tree_bytes(
                jax.eval_shape(functools.partial(model.init_cache, 1, length))
            ),
            "resident_bytes": resident.bytes,
        }
    first, *_, last = lengths.values()
    growth = {
        figure: round(last[figure] / first[figure], 4)
        for figure in ("cache_bytes", "resident_bytes")
    }
    return {"lengths": lengths, "growth": growth, "power": power(plan.lengths, lengths)}


def power(lengths: tuple[int, ...], figures: Mapping[str, Mapping[str, float]]) -> float | None:
    """The power of the length that CPU time goes as, from the second length to the last."""
    if len(lengths) < 3:
        return None
    short, long = lengths[1], lengths[-1]
    times = figures[str(long)]["cpu_seconds"] / figures[str(short)]["cpu_seconds"]
    return round(math.log(times) / math.log(long / short), 3)


def print_pattern(name: str, figures: Mapping[str, Any]) -> None:
    """A line for each length."""
    for length, at in figures["lengths"].items():
        print(
            f"{name:<12} {int(length):>8,} {at['seconds']:>8.2f} {at['cpu_seconds']:>8.2f} "
            f"{1e6 * at['cpu_seconds'] / int(length):>11.1f} {at['cache_bytes'] / 1e3:>9.1f} "
            f"{at['resident_bytes'] / 1e6:>8.1f}"
        )
