"""The tune suite: searches the kernels' tiles on this device and writes the best to their table.

For each dtype and width, starting from the row the table has now, one field after the other is
tried at each of its values while the rest stay, and the fastest is kept; two rounds, or one that
changes nothing. A candidate counts only if outputs and every gradient of both rules agree with
`chunked` on keys that resemble each other, which is where a coarse inverse shows.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from carve_jax.errors import UserError
from carve_jax.training.metrics import write_atomically
from experiments.benchmark_gpu import TURN, check_parts
from experiments.contenders import RULES, Shape, rule_contender, rule_inputs
from experiments.timing import Contender, LeftOut, attempt, median_seconds, require_gpu
from pallas_kernels import tiling
from pallas_kernels.tiling import Tiles

DTYPES = ("bfloat16", "float16", "float32")
WIDTHS = (64, 128, 256)
# Programs as in the official layer, 8 × 16, at a length that keeps the search short.
BATCH, LENGTH, HEADS = 8, 2048, 16
# ‖kernel − chunked‖ / ‖chunked‖ of each output and gradient. float32 inputs must not be taken for
# tf32 ones (5e-4).
TOLERANCE = {"bfloat16": 2e-2, "float16": 1e-2, "float32": 1e-4}
GAIN = 0.02  # a candidate must be this much faster, or it is noise
ROUNDS = 2
GRID: dict[str, tuple[Any, ...]] = {
    "chunk": (16, 32, 64),
    "warps": (4, 8),
    "stages": (1, 2, 3),
    "backward_stages": (1, 2),
    "parallel_warps": (2, 4, 8),
    "block_value": (32, 64, 128, 256),
}
INVERSE = {
    "bfloat16": ("bf16", "tf32"),
    "float16": ("bf16", "tf32"),
    "float32": ("tf32", "tf32x3", "f32"),
}
Measure = Callable[[Tiles], "float | str"]


class Found(NamedTuple):
    """The fastest tiles of a search.

    Attributes:
      tiles: the cut, None where not one candidate was right.
      seconds: its time.
      tried: every candidate with its seconds, or why it was dropped.
    """

    tiles: Tiles | None
    seconds: float
    tried: dict[Tiles, "float | str"]


def grid(dtype: str, width: int) -> dict[str, tuple[Any, ...]]:
    """Values of each field that are tried; a block of values is no wider than the values."""
    blocks = tuple(block for block in GRID["block_value"] if block <= width)
    return {**GRID, "block_value": blocks, "inverse": INVERSE[dtype]}


def search(start: Tiles, fields: Mapping[str, Iterable[Any]], measure: Measure) -> Found:
    """One field at a time, the best kept; see the module.

    Args:
      start: tiles to begin with; they too must pass.
      fields: values of each field to try.
      measure: seconds of a candidate, or why it is dropped.
    """
    tried: dict[Tiles, float | str] = {start: measure(start)}
    found: Tiles | None = None if isinstance(tried[start], str) else start
    best = float("inf") if found is None else float(tried[start])
    for _ in range(ROUNDS):
        before = found
        for field, values in fields.items():
            base = start if found is None else found
            for value in values:
                candidate = dataclasses.replace(base, **{field: value})
                if candidate in tried:
                    continue
                seconds = tried[candidate] = measure(candidate)
                if not isinstance(seconds, str) and seconds < (1 - GAIN) * best:
                    found, best = candidate, seconds
        if found == before:
            break
    return Found(found, best, tried)


class Trial:
    """Measures candidates for one dtype and width; both rules, forward and backward.

    Args:
      shape, dtype: of the inputs.
      repeats, turn_seconds: as `median_seconds` takes them.
      implementation: what is measured; it takes `tiles`.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: str,
        repeats: int,
        turn_seconds: float = TURN,
        implementation: str = "pallas",
    ) -> None:
        self._inputs = correlated(rule_inputs(shape, dtype))
        self._implementation, self._tolerance = implementation, TOLERANCE[dtype]
        self._repeats, self._turn_seconds = repeats, turn_seconds
        self._expected = {rule: _run(self._contender(rule, "chunked")) for rule in RULES}

    def measure(self, tiles: Tiles) -> float | str:
        """Seconds of GDN-2 plus those of CARVE, or why these tiles are dropped."""
        return attempt(lambda: self._seconds(tiles))

    def _seconds(self, tiles: Tiles) -> float:
        contenders = {}
        for rule in RULES:
            made = contenders[rule] = self._contender(rule, self._implementation, tiles=tiles)
            error = difference(_run(made), self._expected[rule])
            if not error <= self._tolerance:  # NaN too
                raise LeftOut(f"{rule} is off by {error:.1e}, {self._tolerance:.0e} at most")
        times = median_seconds(contenders, self._repeats, turn_seconds=self._turn_seconds)
        return sum(times.values())

    def _contender(self, rule: str, implementation: str, **options: Any) -> Contender:
        return rule_contender(self._inputs, rule, implementation, backward=True, **options)


def correlated(x: Mapping[str, jax.Array], share: float = 0.7) -> dict[str, jax.Array]:
    """The inputs with keys of a head that point the same way: cosines of about `share`."""
    key = x["key"].astype(jnp.float32)
    common = key[:, :1]
    mixed = share**0.5 * common + (1 - share) ** 0.5 * key
    mixed = mixed / jnp.linalg.norm(mixed, axis=-1, keepdims=True)
    return {**x, "key": mixed.astype(x["key"].dtype)}


@jax.jit
def _differences(left: Any, right: Any) -> jax.Array:
    def relative(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.astype(jnp.float32).ravel(), b.astype(jnp.float32).ravel()
        size = jnp.linalg.norm(b)
        return jnp.linalg.norm(a - b) / jnp.where(size == 0, 1.0, size)

    return jnp.stack(jax.tree.leaves(jax.tree.map(relative, left, right)))


def difference(left: Any, right: Any) -> float:
    """The largest ‖a − b‖ / ‖b‖ (‖a‖ if b is 0) of the arrays in two trees; NaN if there is one."""
    return float(jnp.max(_differences(left, right)))


def _run(entry: Contender) -> Any:
    return jax.block_until_ready(entry.compiled(*entry.arguments))


def merge_rows(
    rows: Iterable[Mapping[str, Any]], found: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The table with new rows in place of those of the same device, dtype and width.

    The first row that fits is the one that is used, so rows with longer device names come first,
    then narrower ones; rows for any device stay last and in their order.
    """

    def key(row: Mapping[str, Any]) -> tuple[str, str, int]:
        return row["device"], row["dtype"], row["width"]

    new = {key(row): dict(row) for row in found}
    kept = [dict(row) for row in rows if key(row) not in new]
    named = [row for row in [*kept, *new.values()] if row["device"]]
    named.sort(key=lambda row: (-len(row["device"]), *key(row)))
    return named + [row for row in [*kept, *new.values()] if not row["device"]]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of the table at `path`; those of the shipped one where there is none yet.

    Raises:
      UserError: it cannot be read, or its folder does not exist.
    """
    if not path.parent.is_dir():
        raise UserError(f"--table={path}: the folder {path.parent} does not exist")
    source = path if path.exists() else tiling.TABLE
    try:
        return json.loads(source.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"--table={path}: {source} cannot be read: {error}") from error


def write_table(path: Path, found: Iterable[Mapping[str, Any]]) -> None:
    """Puts rows into the table at `path`, a row a line; a new table begins as the shipped one."""
    rows = merge_rows(read_rows(path), found)
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    write_atomically(path, f"[\n{lines}\n]\n")
    tiling.read_table.cache_clear()


def tune_suite(
    repeats: int,
    save: Callable[[dict[str, Any]], None],
    table: Path = tiling.TABLE,
    only: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Searches every dtype and width, writing each row as it is found.

    Args:
      repeats: timed rounds of a candidate.
      save: called with the figures so far after each search.
      table: where the rows go.
      only: parts such as "bfloat16/128" whose names hold one of these texts; all if empty.

    Raises:
      UserError: no NVIDIA GPU is here, `only` names no part, or the table is no table.
    """
    parts = {f"{dtype}/{width}": (dtype, width) for dtype in DTYPES for width in WIDTHS}
    check_parts(only, list(parts))
    require_gpu("tune")
    read_rows(table)
    device = jax.devices()[0].device_kind
    figures: dict[str, Any] = {"device": device, "table": str(table), "searches": {}}
    for name, (dtype, width) in parts.items():
        if only and not any(text in name for text in only):
            continue
        shape = Shape(BATCH, LENGTH, HEADS, width)
        start = tiling.choose(jnp.dtype(dtype), width, width, device)
        print(f"\n{name}, {shape.label}: ms of gdn2 + carve, forward and backward")
        trial = Trial(shape, dtype, repeats)
        found = search(start, grid(dtype, width), told(trial.measure))
        figures["searches"][name] = record(found)
        if found.tiles is None:
            print(f"{name}: not one candidate is right, the table stays as it is")
        else:
            tiles = dataclasses.asdict(found.tiles)
            row = {"device": device, "dtype": dtype, "width": width, "tiles": tiles}
            write_table(table, [row])
            print(f"{name}: {1e3 * found.seconds:.3f} ms, written to {table}: {tiles}")
        save(figures)
    return figures


def told(measure: Measure) -> Measure:
    """`measure`, with a line printed for each candidate."""

    def run(tiles: Tiles) -> float | str:
        outcome = measure(tiles)
        text = f"dropped: {outcome}" if isinstance(outcome, str) else f"{1e3 * outcome:.3f}"
        values = " ".join(f"{field}={getattr(tiles, field)}" for field in (*GRID, "inverse"))
        print(f"  {values}  {text}")
        return outcome

    return run


def record(found: Found) -> dict[str, Any]:
    """A search as plain values, fastest candidate first and dropped ones last."""

    def order(item: tuple[Tiles, float | str]) -> float:
        return float("inf") if isinstance(item[1], str) else item[1]

    return {
        "tiles": None if found.tiles is None else dataclasses.asdict(found.tiles),
        "seconds": None if found.tiles is None else found.seconds,
        "tried": [
            {"tiles": dataclasses.asdict(tiles), "outcome": outcome}
            for tiles, outcome in sorted(found.tried.items(), key=order)
        ],
    }
