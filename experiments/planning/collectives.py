"""What a compiled program sends between devices, read from its text.

A collective inside a loop counts as often as the loop turns, which XLA writes beside it.
"""

import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(
    r"\b(body|calls|to_apply|true_computation|false_computation|branch_computations)="
    r"(\{[^}]*\}|%?[\w.-]+)"
)
_TURNS = re.compile(r'known_trip_count[":={\s]+n[":\s]+(\d+)')
_COLLECTIVE = re.compile(
    r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_NAMED = re.compile(r"replica_groups=(?:@?[\w.]+)?\[([^\]]*)\]\s*\{([^}]*)\}")


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
      sent: bytes that a device sends in one, on a ring.
      turns: how often it happens when the program runs.
      devices: that take part together.
      name: of the operation in the model, as JAX traced it.
    """

    kind: str
    sent: float
    turns: int
    devices: int
    name: str


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a program (`Compiled.as_text()`) for so many devices."""
    if devices == 1:
        return []
    turns = turns_of(text)
    found = []
    placed = [(name, line) for name, lines in computations(text).items() for line in lines]
    for computation, line in placed:
        match = _COLLECTIVE.search(line)
        if match is None or computation not in turns:
            continue
        shape, kind, started = match.groups()
        group = _group(line, devices)
        name = re.search(r'op_name="([^"]*)"', line)
        sent = _sent(kind, array_bytes(shape), group, started is not None)
        found.append(Collective(kind, sent, turns[computation], group, name[1] if name else ""))
    return found


def _sent(kind: str, size: float, group: int, started: bool) -> float:
    """Bytes that a device sends, of a result of `size` bytes.

    What is started holds operand and result side by side, but for an all-reduce.
    """
    if kind == "collective-permute":
        return size / 2 if started else size
    share = (group - 1) / group
    if kind == "all-reduce":
        return 2 * share * size
    if kind == "all-to-all":
        return share * (size / 2 if started else size)
    whole = size * group / (group + 1) if started else size  # operand and result: 1 to n
    if kind == "reduce-scatter" and not started:
        whole = size * group
    return share * whole


def computations(text: str) -> dict[str, list[str]]:
    """Instructions of each computation of a program."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            lines = found.setdefault(header[2], [])
        elif " = " in line:
            lines.append(line)
    return found


def turns_of(text: str, *, into_kernels: bool = True) -> dict[str, int]:
    """How often each computation happens when the program runs; none that is never called.

    Args:
      into_kernels: count what happens inside fusions, reductions and the like too.
    """
    calls: dict[str, list[tuple[str, int]]] = {}
    for computation, lines in computations(text).items():
        calls[computation] = []
        for line in lines:
            for kind, names in _CALLED.findall(line):
                inside = kind == "calls" or (kind == "to_apply" and " call(" not in line)
                if inside and not into_kernels:
                    continue
                known = _TURNS.search(line) if kind == "body" else None
                for name in re.findall(r"[\w.-]+", names):
                    calls[computation].append((name, int(known[1]) if known else 1))
    turns: dict[str, int] = {}

    def visit(computation: str, times: int) -> None:
        turns[computation] = turns.get(computation, 0) + times
        for name, each in calls.get(computation, []):
            visit(name, times * each)

    entry = next(m[2] for m in map(_COMPUTATION.match, text.splitlines()) if m and m[1])
    visit(entry, 1)
    return turns


def array_bytes(shape: str) -> float:
    """Of all arrays in the text of a shape, comments in it left out."""
    total = 0.0
    for kind, bits, sizes in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape)):
        number = math.prod(int(size) for size in sizes.split(",") if size)
        total += number * (1 if kind == "pred" else int(bits) / 8)
    return total


def _group(line: str, devices: int) -> int:
    """How many devices take part in a collective together."""
    if match := _LISTED.search(line):
        return match[1].count(",") + 1
    if match := _IOTA.search(line):
        return int(match[2])
    if match := _NAMED.search(line):
        sizes = dict(re.findall(r"'?([\w.]+)'?=(\d+)", match[1]))
        parts = re.findall(r"'?([A-Za-z_][\w.]*)'?(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return devices
