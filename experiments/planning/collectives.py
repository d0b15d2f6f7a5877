"""What a compiled program sends between devices, read from its text.

A collective inside a loop counts as often as the loop turns, which XLA writes beside it.
"""

import math
import re
from typing import NamedTuple

from experiments.planning.hlo_text import array_bytes, computations, turns_of

_COLLECTIVE = re.compile(
    r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
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
