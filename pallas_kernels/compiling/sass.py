"""Counts the instructions that a warp executes, from the machine code (SASS) of a compiled kernel.

What steers a kernel of this package, its loops' counters, is known when it is compiled. So its
code is followed as the processor would follow it, with the few integer instructions that feed
branches carried out and all others counted: unrolled, peeled and pipelined loops need no special
care. A value that only the GPU will know (an index of a thread, a word of memory) is None; where
such a value decides a jump forward the code jumped over is counted, where it decides a loop there
is no count but a `CountError`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pallas_kernels.compiling.sass_values import (
    OPERATIONS,
    Instruction,
    Words,
    carry_out,
    predicate,
    read,
    written,
)

MOST_STEPS = 2_000_000  # blocks of instructions; a scan over 4096 tokens takes some thousand
_SPIN = 16  # a loop this short that waits for memory ends at once

_TEXT = re.compile(r"^\.text\.(\S+):")
_LABEL = re.compile(r"^(\.L\S+):")
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_TARGET = re.compile(r"`\((\.L[^)\s]+)\)")


class CountError(ValueError):
    """The machine code does not tell how often a loop runs."""


@dataclass(frozen=True)
class Loop:
    """A loop as executed: from its first instruction to the jump back, `trips` times per entry."""

    first: int
    last: int
    entries: int
    trips: float


@dataclass
class Execution:
    """What one warp executes.

    Attributes:
      instructions: by category (`category`).
      loops: those that jumped back at least once, by address.
      assumed: addresses of jumps whose condition only the GPU knows, taken not to jump.
    """

    instructions: Counter[str] = field(default_factory=Counter)
    loops: list[Loop] = field(default_factory=list)
    assumed: set[int] = field(default_factory=set)

    @property
    def total(self) -> int:
        """Instructions of all categories."""
        return self.instructions.total()


def parse(text: str) -> dict[str, list[Instruction]]:
    """The kernels in a listing of `nvdisasm -c`, by name."""
    kernels: dict[str, list[tuple]] = {}
    labels: dict[str, int] = {}
    waiting: list[str] = []
    name = ""
    for line in text.splitlines():
        if found := _TEXT.match(line):
            name = found[1]
            kernels[name] = []
        elif found := _LABEL.match(line):
            waiting.append(f"{name} {found[1]}")
        elif name and (found := _LINE.match(line)):
            address = int(found[1], 16)
            labels.update(dict.fromkeys(waiting, address))
            waiting.clear()
            kernels[name].append((address, (found[2] or "").strip(" @"), found[3], found[4]))
    return {
        name: [
            Instruction(a, guard, opcode, _operands(rest), _jump(opcode, rest, name, labels))
            for a, guard, opcode, rest in lines
        ]
        for name, lines in kernels.items()
    }


def _operands(rest: str) -> tuple[str, ...]:
    return tuple(o.strip().removesuffix(".reuse") for o in rest.split(",") if o.strip())


def _jump(opcode: str, rest: str, name: str, labels: dict[str, int]) -> int | None:
    found = _TARGET.search(rest)
    return (
        labels.get(f"{name} {found[1]}")
        if found and opcode[:4] in ("BRA", "BRA.", "CALL")
        else None
    )


def category(instruction: Instruction) -> str:
    """What kind of work an instruction is, for a report."""
    return _CATEGORIES.get(instruction.name) or (
        "uniform" if instruction.name.startswith("U") else "other"
    )


_CATEGORIES = {
    name: kind
    for kind, names in {
        "tensor": "HMMA HGMMA QGMMA IMMA UTCHMMA UTCQMMA",
        "global": "LDG STG LDGSTS UTMALDG UTMASTG RED ATOM ATOMG LDGDEPBAR",
        "shared": "LDS STS LDSM STSM ATOMS",
        "spill": "LDL STL",
        "barrier": "BAR WARPGROUP WARPSYNC SYNCS DEPBAR MEMBAR FENCE ERRBAR ELECT",
        "special": "MUFU",
        "shuffle": "SHFL REDUX VOTE",
        "float": "FADD FMUL FFMA FADD2 FMUL2 FFMA2 HADD2 HMUL2 HFMA2 FFMA32I FMUL32I FADD32I",
        "convert": "F2FP F2F I2F I2FP F2I FRND",
        "select": "FSEL SEL FMNMX FSETP ISETP PLOP3 P2R R2P FSET IMNMX VIMNMX",
        "move": "MOV CS2R PRMT R2UR S2R S2UR LDC",
        "integer": "IMAD IADD3 IADD LEA SHF LOP3 VIADD IABS SGXT BMSK SHL SHR IDP POPC FLO",
        "control": "BRA BSSY BSYNC EXIT NOP CALL RET YIELD ACQBULK CCTL",
    }.items()
    for name in names.split()
}


def execute(instructions: Sequence[Instruction]) -> Execution:
    """Walks one kernel's code from its first instruction to its end.

    Raises:
      CountError: a loop ends on a condition that the code does not tell, or not at all.
    """
    return _Walk(instructions).run()


class _Walk:
    def __init__(self, code: Sequence[Instruction]):
        self.code = code
        self.at = {instruction.address: i for i, instruction in enumerate(code)}
        self.words: Words = {}
        self.steering = _steering(code)
        self.found = Execution()
        self.visits: Counter[int] = Counter()
        self.jumps: Counter[tuple[int, int]] = Counter()

    def run(self) -> Execution:
        position, returns = 0, list[int]()
        for _ in range(MOST_STEPS):
            following = self._block(position, returns)
            if following is None:
                return self._result()
            position = following
        raise CountError(f"it does not end within {MOST_STEPS} jumps")

    def _block(self, position: int, returns: list[int]) -> int | None:
        """Walks to the next jump; where it leads, or None at the end."""
        for i in range(position, len(self.code)):
            here = self.code[i]
            if here.name == "BRA" and here.target == here.address:
                return None  # the padding behind the last instruction
            self.visits[i] += 1
            if here.name in ("BRA", "CALL", "EXIT", "RET", "BRX", "JMP"):
                if not self._taken(here):
                    continue
                if here.name == "EXIT":
                    return None
                if here.name == "RET":
                    return returns.pop() if returns else None
                if here.target is None:
                    raise CountError(f"{here.opcode} at {here.address:#x} leads nowhere known")
                if here.name == "CALL":
                    returns.append(i + 1)
                elif here.target < here.address:
                    self.jumps[here.target, here.address] += 1
                return self.at[here.target]
            if i in self.steering:
                carry_out(here, self.words)
        return None

    def _taken(self, here: Instruction) -> bool:
        """Whether a jump is taken."""
        conditions = [here.guard] if here.guard else []
        if here.opcode.startswith(("BRA.DIV", "BRA.CONV")):
            return False  # for warps whose threads have parted
        conditions += [o for o in here.operands if re.fullmatch(r"!?U?P\w", o)]
        known = [predicate(c, self.words) for c in conditions]
        if False in known:
            return False
        if None not in known:
            return True
        if here.target is not None and here.target < here.address:
            body = self.code[self.at[here.target] : self.at[here.address]]
            if len(body) > _SPIN or not any(i.name in ("SYNCS", "LDG", "LD") for i in body):
                raise CountError(
                    f"how often the loop from {here.target:#x} to {here.address:#x} runs depends "
                    f"on {', '.join(conditions)}, set by {self._blame(conditions, here.address)}"
                )
        self.found.assumed.add(here.address)
        return False

    def _blame(self, conditions: Iterable[str], address: int) -> str:
        names = {c.lstrip("!") for c in conditions}
        before = [c for c in self.code if names & set(written(c)) and c.address < address]
        last = before[-1:]
        return " ".join([last[0].opcode, *last[0].operands]) if last else "nothing"

    def _result(self) -> Execution:
        for i, times in self.visits.items():
            self.found.instructions[category(self.code[i])] += times
        for (first, last), taken in sorted(self.jumps.items()):
            entries = max(1, self.visits[self.at[last]] - taken)
            self.found.loops.append(Loop(first, last, entries, taken / entries + 1))
        return self.found


def _steering(code: Sequence[Instruction]) -> set[int]:
    """Positions of the instructions whose results reach a jump's condition."""
    jumps = [i for i in code if i.name in ("BRA", "EXIT", "CALL", "RET")]
    needed = {name for jump in jumps for name in read(jump)}
    results = [written(i) for i in code]
    chosen: set[int] = set()
    while True:
        added = {
            i for i, names in enumerate(results) if i not in chosen and needed.intersection(names)
        }
        if not added:
            return chosen
        chosen |= added
        for i in added:
            if code[i].name in OPERATIONS:
                needed.update(read(code[i]))
