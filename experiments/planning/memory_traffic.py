"""What the kernels of a compiled program read and write, from its text.

Each operation of the scheduled program is a kernel, or a copy, that reads its operands and writes
its results once; what a fusion only slices, or writes a slice of, counts as the slice. A real
kernel may read something twice, and the cache may spare it. Kernels of our own do not count: they
are given whole arrays and the text does not say which part of them they use.
"""

import re
from typing import NamedTuple

from experiments.planning.hlo_text import array_bytes, computations, turns_of

_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\(([^()]*)\)")
FREE = frozenset(
    {
        "parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "while",
        "conditional", "call", "after-all", "partition-id", "replica-id", "opt-barrier",
        "add-dependency",
    }
)  # fmt: skip


class Instruction(NamedTuple):
    """One line of a computation; sizes are bytes of the result."""

    name: str
    shape: str
    size: float
    operation: str
    operands: list[str]
    root: bool
    line: str


class Kernel(NamedTuple):
    """One operation of the scheduled program: a kernel, a copy or a collective.

    Attributes:
      instruction: that starts it.
      inside: what a fusion is made of, else the instruction alone.
      shapes: of the arrays that `inside` names, as text.
      turns: how often it happens when the program runs.
      moved: bytes read and written each time.
      ours: a kernel of our own, of whose arrays the text does not say what is used.
    """

    instruction: Instruction
    inside: list[Instruction]
    shapes: dict[str, str]
    turns: int
    moved: float
    ours: bool


def traffic(text: str) -> float:
    """Bytes that a device's kernels, but for our own, read and write when the program runs."""
    return sum(each.turns * each.moved for each in kernels(text) if not each.ours)


def kernels(text: str) -> list[Kernel]:
    """All that a program (`Compiled.as_text()`) launches, in the order of its computations."""
    parsed = {
        name: [found for line in lines if (found := _parse(line))]
        for name, lines in computations(text).items()
    }
    turns = turns_of(text, into_kernels=False)
    launched = []
    for name, instructions in parsed.items():
        if not turns.get(name):
            continue
        shapes = {each.name: each.shape for each in instructions}
        sizes = {each.name: each.size for each in instructions}
        for each in instructions:
            if each.operation in FREE or each.operation.endswith("-done"):
                continue
            ours = each.operation == "custom-call" and "pallas_call" in each.line
            body = _body(each, parsed)
            moved = _moved(each, sizes, parsed)
            known = {inner.name: inner.shape for inner in body} if body else shapes
            launched.append(Kernel(each, body or [each], known, turns[name], moved, ours))
    return launched


def _parse(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    root, name, shape, operation, operands = match.groups()
    names = re.findall(r"%([\w.-]+)", operands) or operands.split(", ")
    return Instruction(name, shape, array_bytes(shape), operation, names, bool(root), line)


def _body(each: Instruction, parsed: dict[str, list[Instruction]]) -> list[Instruction]:
    """What a fusion, started or at once, is made of; [] for any other operation."""
    if each.operation not in ("fusion", "fusion-start"):
        return []
    called = re.search(r"calls=%?([\w.-]+)", each.line)
    return parsed.get(called[1], []) if called else []


def _moved(
    each: Instruction, sizes: dict[str, float], parsed: dict[str, list[Instruction]]
) -> float:
    """Bytes that one operation reads and writes."""
    if body := _body(each, parsed):
        return _fused(body)
    operands = [sizes.get(name, 0.0) for name in each.operands]
    if each.operation in ("dynamic-slice", "slice", "gather"):
        return 2 * each.size
    if each.operation == "dynamic-update-slice":
        return 2 * operands[1]
    if each.operation.endswith("-start"):  # its result holds the operands too
        return each.size
    return each.size + sum(operands)


def _fused(body: list[Instruction]) -> float:
    """Bytes that a fusion reads of its parameters and writes of its roots."""
    by_name = {each.name: each for each in body}
    readers: dict[str, list[Instruction]] = {}
    for each in body:
        for name in each.operands:
            readers.setdefault(name, []).append(each)

    def read(name: str) -> float:
        whole = by_name[name].size
        total = 0.0
        for reader in readers.get(name, []):
            if reader.operation in ("dynamic-slice", "slice", "gather"):
                total += reader.size if reader.operands[0] == name else whole
            elif reader.operation == "bitcast":
                total += read(reader.name)
            elif reader.operation == "dynamic-update-slice" and reader.operands[0] == name:
                continue  # written in place
            else:
                total += whole
        return min(total, whole)

    def written(name: str) -> float:
        each = by_name[name]
        if each.operation == "bitcast":
            return written(each.operands[0])
        if each.operation == "tuple":
            return sum(written(operand) for operand in each.operands)
        if each.operation == "dynamic-update-slice":
            return by_name[each.operands[1]].size
        return 0.0 if each.operation == "parameter" else each.size

    roots = [each.name for each in body if each.root]
    parameters = [each.name for each in body if each.operation == "parameter"]
    return sum(map(read, parameters)) + sum(map(written, roots))
