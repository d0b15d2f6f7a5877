"""The text of a compiled program (optimised HLO): its computations, how often each runs, sizes."""

import math
import re

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(
    r"\b(body|calls|to_apply|true_computation|false_computation|branch_computations)="
    r"(\{[^}]*\}|%?[\w.-]+)"
)
_TURNS = re.compile(r'known_trip_count[":={\s]+n[":\s]+(\d+)')
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


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
    """Bytes of all arrays in the text of a shape, comments in it left out."""
    total = 0.0
    for kind, bits, sizes in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", shape)):
        number = math.prod(int(size) for size in sizes.split(",") if size)
        total += number * (1 if kind == "pred" else int(bits) / 8)
    return total
