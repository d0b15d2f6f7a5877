"""The decode suite: memory and time per token while a model writes 100,000 of them.

Each pattern is decoded in a process of its own, so that its peak of memory is its own. What does
not grow between the first and the last length is constant. Full attention, whose cache grows with
the room that is asked for, is decoded to a part of the length; how large its cache is for the whole
of it is known from its shapes.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from carve_jax.decoding import Decoding, prefill
from carve_jax.generate import STEPS_A_CALL, decode
from carve_jax.mixers import MIXERS
from carve_jax.model import LanguageModel
from experiments.benchmarks.patterns import PROMPT, Plan, random_model
from experiments.measuring.memory import live_bytes, peak_rss_bytes, tree_bytes
from experiments.measuring.timing import in_fresh_process

TIMED = 512  # tokens before each length by which the time is told


def decode_suite(save: Callable[[dict[str, Any]], None], plan: Plan) -> dict[str, Any]:
    """Every pattern of the plan; `save` is called with what there is so far."""
    figures: dict[str, Any] = {"plan": dataclasses.asdict(plan), "patterns": {}, "skipped": {}}
    print_heading()
    for name in plan.patterns:
        missing = [mixer for mixer in name.split("+") if mixer not in MIXERS]
        if missing:
            figures["skipped"][name] = f"there is no mixer {missing[0]!r}"
            continue
        figures["patterns"][name] = in_fresh_process(measure, name, plan)
        print_pattern(name, figures["patterns"][name])
        save(figures)
    return figures


def measure(name: str, plan: Plan) -> dict[str, Any]:
    """Decodes one row of a random model of this pattern; bytes and milliseconds at each length.

    Returns:
      `parameter_bytes`, and under `lengths`: bytes of a cache with room for that length; and where
      it was reached, those of the cache there was (with room for the last), of all arrays on the
      device, of the process at its peak so far, and milliseconds per token.
    """
    model, params = random_model(name, plan)
    full = model.config.has_full_attention
    reached = [n for n in plan.lengths if not full or n <= plan.most_of_attention]
    lengths: dict[str, dict[str, float]] = {}
    for length in plan.lengths:
        room = jax.eval_shape(functools.partial(model.init_cache, 1, length))
        lengths[str(length)] = {"cache_bytes": tree_bytes(room)}
    if reached:
        decoding = prefill(model, params, [list(range(PROMPT))], max_length=max(reached))
        for length in reached:
            decoding, seconds = _decode_to(model, params, decoding, length)
            lengths[str(length)] |= {
                "held_cache_bytes": tree_bytes(decoding.cache),
                "live_bytes": live_bytes(),
                "peak_rss_bytes": peak_rss_bytes(),
                "milliseconds_a_token": round(1e3 * seconds, 4),
            }
    return {"parameter_bytes": tree_bytes(params), "lengths": lengths}


def _decode_to(
    model: LanguageModel, params: Any, decoding: Decoding, length: int
) -> tuple[Decoding, float]:
    """Decodes a row to this length; seconds per token over the last of them."""
    steps = length - int(decoding.position[0])
    # What is compiled, or grows, is over before the clock starts.
    timed = min(TIMED, max(1, steps - STEPS_A_CALL))
    _, decoding = decode(model, params, decoding, max_new_tokens=steps - timed)
    start = time.perf_counter()
    _, decoding = decode(model, params, decoding, max_new_tokens=timed)
    jax.block_until_ready(decoding)
    return decoding, (time.perf_counter() - start) / timed


def print_heading() -> None:
    """The names of the columns."""
    print(
        f"{'pattern':<12} {'tokens':>8} {'cache KB':>12} {'live MB':>9} {'peak RSS MB':>12} "
        f"{'ms/token':>11}"
    )


def print_pattern(name: str, figures: Mapping[str, Any]) -> None:
    """A line for each length."""
    for length, at in figures["lengths"].items():
        line = f"{name:<12} {int(length):>8,} {at['cache_bytes'] / 1e3:>12,.1f}"
        if "live_bytes" in at:
            line += (
                f" {at['live_bytes'] / 1e6:>9.2f} {at['peak_rss_bytes'] / 1e6:>12.1f} "
                f"{at['milliseconds_a_token']:>11.3f}"
            )
        print(line + ("" if "live_bytes" in at else "  (not decoded so far)"))
