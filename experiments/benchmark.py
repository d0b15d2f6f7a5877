"""Times the rule against its peers, and sets the figures beside the machine's floors.

  python -m experiments.benchmark [--suite=cpu] [--repeats=15] [--output=FILE.json]

Contenders take turns within one run, after a warm-up; medians are reported, the ratio first. The
JSON goes to experiments/results/ unless --output says where.
"""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from carve_jax.errors import UserError
from carve_jax.ops.gated_delta import carve_rule, gated_delta_rule
from carve_jax.training.metrics import write_atomically
from carve_jax.training.provenance import describe_environment
from carve_jax.training.settings import nearest
from experiments import cli
from experiments.timing import (
    Contender,
    contender,
    machine_ceilings,
    median_seconds,
    with_gradients,
)

RESULTS = Path(__file__).parent / "results"
TILE = 64


class Shape(NamedTuple):
    """Sizes of one call of the rule; K = V = channels."""

    batch: int
    length: int
    heads: int
    channels: int


def rule_inputs(shape: Shape, seed: int = 0) -> dict[str, jax.Array]:
    """Float32 inputs of every contender: unit keys, gates from sigmoids, decays from softplus."""
    rng = np.random.default_rng(seed)
    batch, length, heads, channels = shape

    def draw(*sizes: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(sizes), jnp.float32)

    full, rank = (batch, length, heads, channels), 16
    key = draw(*full)
    logits, write = draw(*full), jax.nn.sigmoid(draw(*full))
    return {
        "query": draw(*full),
        "key": key / jnp.linalg.norm(key, axis=-1, keepdims=True),
        "value": draw(*full),
        "log_decay": -jax.nn.softplus(draw(*full)),
        "logits": logits,
        "erase": jax.nn.sigmoid(logits),
        "write": write,
        "head_write": write[..., :1],
        "down": 0.1 * draw(heads, channels, rank),
        "up": 0.1 * draw(heads, rank, channels),
        "cotangent": draw(*full),
    }


def ours(shape: Shape, rule: str, implementation: str, backward: bool = True) -> Contender:
    """GDN-2 or CARVE, forward or forward and backward with every gradient."""
    x = rule_inputs(shape)
    common = [x["query"], x["key"], x["value"], x["log_decay"]]
    if rule == "gdn2":
        arguments = (*common, x["erase"], x["write"])

        def function(*a: jax.Array) -> jax.Array:
            return gated_delta_rule(*a, chunk_size=TILE, implementation=implementation)[0]
    else:
        arguments = (*common, x["logits"], x["head_write"], x["down"], x["up"])

        def function(*a: jax.Array) -> jax.Array:
            return carve_rule(*a, gate_chunk=TILE, implementation=implementation)[0]

    return contender(with_gradients(function, x["cotangent"]) if backward else function, *arguments)


def ejkernel(shape: Shape) -> Contender | str:
    """ejkernel's gated delta rule (XLA, scalar decay and β), or why it is not here."""
    try:
        from ejkernel.kernels._xla.gated_delta_rule import gated_delta_rule as peer
    except ImportError as error:
        return f"not installed ({error.name}): pip install -e '.[peers]'"
    x = rule_inputs(shape)

    def function(query, key, value, beta, decay):
        return peer(query, key, value, beta, decay, chunk_size=TILE, use_qk_l2norm=False)[0]

    gates = (x["head_write"][..., 0], x["log_decay"][..., 0])
    both = with_gradients(function, x["cotangent"])
    return contender(both, x["query"], x["key"], x["value"], *gates)


def floors(shape: Shape, ceilings: dict[str, float]) -> dict[str, float]:
    """Least work of GDN-2 forward and backward, and the time it takes at the measured rates.

    Arithmetic, for a token and head with tiles of C and K = V = D, counting triangles as halves:
    forward 4 products of C·D (P, T, the solve, PR) and 3 of 2·D² (Ē S, qS, the state); backward
    recomputes 3 and 2·D² once (T, P, R), then 8 of C·D (dP, dT, two for R, four for the scores)
    and 6 of 2·D². Exponentials are not counted. Bytes: inputs read twice, the output written, its
    gradient read, the inputs' gradients written; states and temporaries are not counted.
    """
    tokens = shape.batch * shape.length * shape.heads
    d = shape.channels
    flop = tokens * ((4 + 3 + 8) * TILE * d + (3 + 1 + 6) * 2 * d * d)
    moved = tokens * d * 4 * (2 * 6 + 2 + 6)
    return {
        "flop": flop,
        "bytes": moved,
        "arithmetic_seconds": flop / ceilings["flop_per_second"],
        "bytes_seconds": moved / ceilings["bytes_per_second"],
    }


def ratio(seconds: dict[str, float], name: str, baseline: str) -> float | None:
    """Time of one contender over another's, None where one is missing."""
    if name not in seconds or baseline not in seconds:
        return None
    return round(seconds[name] / seconds[baseline], 3)


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
    least = floors(shape, ceilings)
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


SUITES: dict[str, Callable[[int], dict[str, Any]]] = {"cpu": cpu_suite}


def main(argv: list[str]) -> None:
    """Parses the flags, measures, prints a table and writes the JSON."""
    definitions = flags.FlagValues()
    suite = flags.DEFINE_string(
        "suite", "cpu", f"One of {', '.join(SUITES)}.", flag_values=definitions
    )
    repeats = flags.DEFINE_integer(
        "repeats", 15, "Timed rounds.", lower_bound=1, flag_values=definitions
    )
    output = flags.DEFINE_string("output", None, "Where the JSON goes.", flag_values=definitions)
    cli.refuse_unknown(cli.parse_flags(definitions, argv), definitions)
    if suite.value not in SUITES:
        raise UserError(f"--suite: unknown suite {suite.value!r}; {nearest(suite.value, SUITES)}")
    environment = describe_environment()
    environment["command"] = f"python -m experiments.benchmark --suite={suite.value}"
    figures = SUITES[suite.value](repeats.value)
    today = datetime.date.today().isoformat()
    path = Path(output.value or RESULTS / f"{today}_{suite.value}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"date": today, "suite": suite.value, **environment, **figures}
    write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    cli.run(main)
