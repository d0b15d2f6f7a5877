"""The tune suite: searches the kernels' tiles on this device and writes the best to their table.

For each dtype, width and kind of rule (GDN-2 for the plain one, CARVE for a content gate), starting
from the row the table has now, one field after the other is tried at each of its values while the
rest stay, and the fastest is kept; two rounds, or one that changes nothing. A candidate counts only
if output and every gradient of the rule agree with `chunked` on keys that resemble each other,
which is where a coarse inverse shows.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.benchmarks.parts import kept_parts
from experiments.benchmarks.tile_table import read_rows, write_table
from experiments.benchmarks.tile_trial import Trial
from experiments.measuring.rule_calls import RULES, Shape
from experiments.measuring.timing import require_gpu
from pallas_kernels import tiling
from pallas_kernels.device import capability
from pallas_kernels.tiling import Tiles

DTYPES = ("bfloat16", "float16", "float32")
WIDTHS = (64, 128, 256)
# Programs as in the official layer, 8 × 16, at a length that keeps the search short.
BATCH, LENGTH, HEADS = 8, 2048, 16
GAIN = 0.02  # a candidate must be this much faster, or it is noise
ROUNDS = 2
GRID: dict[str, tuple[Any, ...]] = {
    "chunk": (16, 32, 64),
    "warps": (4, 8),
    "stages": (1, 2, 3),
    "backward_stages": (1, 2),
    "parallel_warps": (4, 8),
    "block_key": (16, 32, 64),
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


class Part(NamedTuple):
    """One search: a rule, which stands for its kind, with K = V = width."""

    dtype: str
    width: int
    rule: str

    @property
    def content(self) -> bool:
        """The rule has a content gate."""
        return self.rule == "carve"

    @property
    def label(self) -> str:
        """The name, such as bfloat16/128/carve."""
        return "/".join(map(str, self))

    @property
    def shape(self) -> Shape:
        """The shape of the inputs."""
        return Shape(BATCH, LENGTH, HEADS, self.width)

    @property
    def unsupported_reason(self) -> str | None:
        """Why the kernels do not take it, or None."""
        if not self.content or tiling.holds_state(self.dtype, self.width, self.width, capability()):
            return None
        return (
            "under a content gate a program holds a whole state, and one of "
            f"{self.width} x {self.width} is too large with {self.dtype} operands"
        )


PARTS = tuple(Part(*sizes) for sizes in itertools.product(DTYPES, WIDTHS, RULES))


def grid(part: Part) -> dict[str, tuple[Any, ...]]:
    """Values of each field that are tried.

    A block is no wider than the channels; under a content gate a program holds all values.
    """
    fields = {**GRID, "inverse": INVERSE[part.dtype]}
    for name in ("block_key", "block_value"):
        fields[name] = tuple(block for block in GRID[name] if block <= part.width)
    if part.content:
        del fields["block_value"]
    return fields


def start_of(part: Part, device: str) -> Tiles:
    """The tiles that the table has for this kind of rule on a device of that name."""
    return tiling.choose(
        part.dtype, part.width, part.width, device, part.content, capability() or 9.0
    )


def first_candidates(part: Part, device: str) -> list[Tiles]:
    """What a search tries before it has changed anything: one field at a time away from its start.

    They can be compiled ahead, side by side.
    """
    start = start_of(part, device)
    tried = (
        dataclasses.replace(start, **{field: value})
        for field, values in grid(part).items()
        for value in values
    )
    return list(dict.fromkeys([start, *tried]))


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


def tune_suite(
    repeats: int,
    save: Callable[[dict[str, Any]], None],
    table: Path = tiling.TABLE,
    only: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Searches every dtype, width and kind of rule, writing each row as it is found.

    Args:
      repeats: timed rounds of a candidate.
      save: called with the figures so far after each search.
      table: where the rows go.
      only: parts such as "bfloat16/128/carve" whose names hold one of these texts; all if empty.

    Raises:
      UserError: no NVIDIA GPU is here, `only` names no part, or the table is no table.
    """
    kept = kept_parts(only, [part.label for part in PARTS])
    require_gpu("--suite=tune")
    read_rows(table)
    device = jax.devices()[0].device_kind
    figures: dict[str, Any] = {"device": device, "table": str(table), "searches": {}}
    figures["left_out"] = {}
    for part in PARTS:
        if part.label not in kept:
            continue
        if part.unsupported_reason is not None:
            figures["left_out"][part.label] = part.unsupported_reason
            print(f"\n{part.label}: left out, {part.unsupported_reason}")
        else:
            found = tune_part(part, device, repeats)
            figures["searches"][part.label] = record(found)
            keep(part, found, device, table)
        save(figures)
    return figures


def tune_part(
    part: Part,
    device: str,
    repeats: int,
    *,
    known: Mapping[Tiles, float | str] | None = None,
    save: Callable[[Mapping[Tiles, float | str]], None] = lambda tried: None,
) -> Found:
    """One search, from the row that `choose` gives for this kind of rule on this device.

    Args:
      part, device, repeats: what is searched, where, and the timed rounds of a candidate.
      known: outcomes of an earlier search, which are taken as they are.
      save: called with all outcomes so far after each candidate.
    """
    print(f"\n{part.label}, {part.shape.label}: ms of forward and backward")
    trial = Trial(part.shape, part.dtype, part.rule, repeats)
    measure = remembered(told(trial.measure), known or {}, save)
    return search(start_of(part, device), grid(part), measure)


def keep(part: Part, found: Found, device: str, table: Path) -> None:
    """Writes the row of a search to the table, if it found one."""
    if found.tiles is None:
        print(f"{part.label}: not one candidate is right, the table stays as it is")
        return
    row = {
        "device": device,
        "dtype": part.dtype,
        "width": part.width,
        "content": part.content,
        "tiles": dataclasses.asdict(found.tiles),
    }
    write_table(table, [row])
    print(f"{part.label}: {1e3 * found.seconds:.3f} ms, written to {table}: {row['tiles']}")


def told(measure: Measure) -> Measure:
    """`measure`, with a line printed for each candidate."""

    def run(tiles: Tiles) -> float | str:
        outcome = measure(tiles)
        text = f"dropped: {outcome}" if isinstance(outcome, str) else f"{1e3 * outcome:.3f}"
        values = " ".join(f"{field}={getattr(tiles, field)}" for field in (*GRID, "inverse"))
        print(f"  {values}  {text}")
        return outcome

    return run


def remembered(
    measure: Measure,
    known: Mapping[Tiles, float | str],
    save: Callable[[Mapping[Tiles, float | str]], None],
) -> Measure:
    """`measure`, but for candidates whose outcome is known; all outcomes so far go to `save`."""
    outcomes = dict(known)

    def run(tiles: Tiles) -> float | str:
        if tiles not in outcomes:
            outcomes[tiles] = measure(tiles)
            save(outcomes)
        return outcomes[tiles]

    return run


def record(found: Found) -> dict[str, Any]:
    """A search as plain values."""
    return {
        "tiles": None if found.tiles is None else dataclasses.asdict(found.tiles),
        "seconds": None if found.tiles is None else found.seconds,
        "tried": tried_figures(found.tried),
    }


def tried_figures(tried: Mapping[Tiles, float | str]) -> list[dict[str, Any]]:
    """Candidates as plain values, the fastest first and dropped ones last."""

    def order(item: tuple[Tiles, float | str]) -> float:
        return float("inf") if isinstance(item[1], str) else item[1]

    return [
        {"tiles": dataclasses.asdict(tiles), "outcome": outcome}
        for tiles, outcome in sorted(tried.items(), key=order)
    ]
