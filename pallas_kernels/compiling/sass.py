"""Counts the instructions a warp executes, from the machine code (SASS) of a compiled kernel.

What steers a kernel of this package, its loops' counters, is known when it is compiled. So its
code is walked as the processor would, with the few integer instructions that feed branches carried
out and all others counted: unrolled, peeled and pipelined loops need no special care. A value that
only the GPU will know (an index of a thread, a word of memory) is None; where such a value decides
a jump forward the code jumped over is counted, where it decides a loop there is no count but a
`CountError`.
"""

import functools
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

MOST_STEPS = 2_000_000  # blocks of instructions; a walk over 4096 tokens takes some thousand
_WORD = 0xFFFFFFFF
_SPIN = 16  # a loop this short that waits for memory ends at once

_TEXT = re.compile(r"^\.text\.(\S+):")
_LABEL = re.compile(r"^(\.L\S+):")
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_TARGET = re.compile(r"`\((\.L[^)\s]+)\)")


Words = dict[str, int | None]


class CountError(ValueError):
    """The machine code does not tell how often a loop runs."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: `@guard opcode operands`; `target` is where a jump leads."""

    address: int
    guard: str
    opcode: str
    operands: tuple[str, ...]
    target: int | None = None

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]


@dataclass(frozen=True)
class Loop:
    """A loop as executed: from its first instruction to the jump back, `trips` times an entry."""

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
        """Of all categories."""
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
                _carry_out(here, self.words)
        return None

    def _taken(self, here: Instruction) -> bool:
        """Whether a jump is taken."""
        conditions = [here.guard] if here.guard else []
        if here.opcode.startswith(("BRA.DIV", "BRA.CONV")):
            return False  # for warps whose threads have parted
        conditions += [o for o in here.operands if re.fullmatch(r"!?U?P\w", o)]
        known = [_predicate(c, self.words) for c in conditions]
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
        before = [c for c in self.code if names & set(_written(c)) and c.address < address]
        last = before[-1:]
        return " ".join([last[0].opcode, *last[0].operands]) if last else "nothing"

    def _result(self) -> Execution:
        for i, times in self.visits.items():
            self.found.instructions[category(self.code[i])] += times
        for (first, last), taken in sorted(self.jumps.items()):
            entries = max(1, self.visits[self.at[last]] - taken)
            self.found.loops.append(Loop(first, last, entries, taken / entries + 1))
        return self.found


_REGISTER = re.compile(r"(U?R)(\d+)$")
_PREDICATE = re.compile(r"U?P[\dT]$")
_WRITE_NOTHING = {"STG", "STS", "STL", "STSM", "BAR", "BRA", "EXIT", "LDGSTS", "RED", "NOP"}


def _written(instruction: Instruction) -> list[str]:
    """Registers and predicates an instruction writes: predicates before its register, the register
    (several in a row where it is wide), predicates behind it."""
    if instruction.name in _WRITE_NOTHING:
        return []
    operands = instruction.operands
    if "SETP" in instruction.name or "PLOP3" in instruction.name:
        return [o for o in operands[:2] if o not in ("PT", "UPT")]
    found, register = [], False
    for operand in operands:
        if _PREDICATE.match(operand):
            found.append(operand)
        elif not register and (match := _REGISTER.match(operand)):
            register, first = True, int(match[2])
            found += [f"{match[1]}{first + i}" for i in range(_width(instruction))]
        elif register or operand not in ("RZ", "URZ"):
            break
        else:
            register = True
    return [o for o in found if o not in ("PT", "UPT")]


def _width(instruction: Instruction) -> int:
    """How many registers a result takes."""
    name, opcode = instruction.name, instruction.opcode
    if shape := re.search(r"GMMA\.\d+x(\d+)x", opcode):
        return int(shape[1]) // 2
    if ".128" in opcode or name in ("LDSM", "HMMA"):
        return 4
    return 2 if ".64" in opcode or ".WIDE" in opcode or opcode == "CS2R" else 1


def _read(instruction: Instruction) -> list[str]:
    """Registers and predicates that decide what an instruction writes."""
    found = [instruction.guard.lstrip("!")] if instruction.guard else []
    for operand in instruction.operands:
        found += re.findall(r"\bU?[RP]\d+\b", operand)
        if ".WIDE" in instruction.opcode or ".64" in instruction.opcode:
            pairs = re.findall(r"\b(U?R)(\d+)\b", operand)
            found += [f"{kind}{int(number) + 1}" for kind, number in pairs]
    return found


def _steering(code: Sequence[Instruction]) -> set[int]:
    """Positions of the instructions whose results reach a jump's condition."""
    jumps = [i for i in code if i.name in ("BRA", "EXIT", "CALL", "RET")]
    needed = {name for jump in jumps for name in _read(jump)}
    written = [_written(i) for i in code]
    chosen: set[int] = set()
    while True:
        added = {
            i for i, names in enumerate(written) if i not in chosen and needed.intersection(names)
        }
        if not added:
            return chosen
        chosen |= added
        for i in added:
            if code[i].name in _OPERATIONS:
                needed.update(_read(code[i]))


def _carry_out(here: Instruction, words: Words) -> None:
    """Sets what an instruction writes: its result, or None where that is not known."""
    guard = _predicate(here.guard, words) if here.guard else True
    if guard is False:
        return
    results: Words = {}
    if guard is not None and here.name in _OPERATIONS:
        results = _OPERATIONS[here.name](here, words)
    words.update({name: results.get(name) for name in _written(here)})


def _predicate(text: str, words: Words) -> bool | None:
    inverted, name = text.startswith("!"), text.lstrip("!")
    value: int | None = 1 if name in ("PT", "UPT") else words.get(name)
    return None if value is None else bool(value) != inverted


def _word(text: str, words: Words) -> int | None:
    """A 32-bit operand."""
    if text.startswith("-") and not text.startswith("-0x"):
        value = _word(text[1:], words)
        return None if value is None else -value & _WORD
    if text.startswith("~"):
        value = _word(text[1:], words)
        return None if value is None else ~value & _WORD
    text = text.removesuffix(".reuse")
    if text in ("RZ", "URZ", "SRZ"):
        return 0
    if re.fullmatch(r"-?0x[0-9a-f]+", text):
        return int(text, 16) & _WORD
    return words.get(text)


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def _split(here: Instruction) -> tuple[str, list[str], list[str]]:
    """The register an instruction writes, its predicates written and its sources."""
    written = {*_written(here), "PT", "UPT"}
    operands = list(here.operands)
    first = next(i for i, o in enumerate(operands) if not _PREDICATE.match(o))
    last = first + 1
    while last < len(operands) and operands[last] in written and _PREDICATE.match(operands[last]):
        last += 1
    carries = operands[:first] + operands[first + 1 : last]
    return operands[first], carries, operands[last:]


def _result(register: str, *values: int | None) -> Words:
    """Words of a register, and of those that follow it."""
    match = _REGISTER.match(register)
    if match is None:
        return {}
    first = int(match[2])
    return {
        f"{match[1]}{first + i}": None if v is None else v & _WORD for i, v in enumerate(values)
    }


def _carries(names: Sequence[str], total: int | None) -> Words:
    """Predicates that take what a sum of 32 bits carries out."""
    return {name: None if total is None else int(total >> 32 > i) for i, name in enumerate(names)}


def _add(here: Instruction, words: Words) -> Words:
    """IADD3 Rd, [carries out,] a, b, c [, carries in]; IADD and VIADD likewise."""
    register, out, sources = _split(here)
    if ".64" in here.opcode:
        return {}
    into = [o for o in sources if _PREDICATE.match(o.lstrip("!"))]
    values = [_word(o, words) for o in sources if o not in into]
    values += [_flag(o, words) for o in into]
    total = None if None in values else sum(v for v in values if v is not None)
    return _result(register, total) | _carries(out, total)


def _flag(text: str, words: Words) -> int | None:
    value = _predicate(text, words)
    return None if value is None else int(value)


def _multiply(here: Instruction, words: Words) -> Words:
    """IMAD Rd, a, b, c [, carry in], in all its uses as a move, a shift or a sum."""
    register, _, sources = _split(here)
    values = [_word(o, words) for o in sources[:3]]
    if len(values) < 3 or ".HI" in here.opcode:
        return {}
    a, b, c = values
    product = 0 if 0 in (a, b) else None if a is None or b is None else a * b
    if product is None or c is None:
        return {}
    if ".WIDE" in here.opcode:
        if sources[2] not in ("RZ", "URZ"):
            return {}  # c is a pair of registers
        if ".U32" not in here.opcode and a is not None and b is not None:
            product = _signed(a) * _signed(b)
        return _result(register, product, product >> 32)
    carry = _flag(sources[3], words) if ".X" in here.opcode else 0
    return _result(register, None if carry is None else product + c + carry)


def _move(here: Instruction, words: Words) -> Words:
    value = _word(here.operands[1], words)
    return _result(here.operands[0], *[value] * _width(here))


def _shift(here: Instruction, words: Words) -> Words:
    """SHF.L.U32 Rd, low, n, high and SHF.R.(U|S)32.HI Rd, low, n, high."""
    register, low, by, high = here.operands[0], *(_word(o, words) for o in here.operands[1:4])
    if by is None or ".64" in here.opcode or by > 31:
        return {}
    if ".L" in here.opcode:
        return {} if low is None or ".HI" in here.opcode else _result(register, low << by)
    if high is None or here.operands[1] not in ("RZ", "URZ") or ".HI" not in here.opcode:
        return {}
    return _result(register, (_signed(high) if ".S32" in here.opcode else high) >> by)


def _lea(here: Instruction, words: Words) -> Words:
    """LEA Rd, [carry out,] a, b, n: (a << n) + b."""
    register, out, sources = _split(here)
    a, b, by, *rest = (_word(o, words) for o in sources)
    if ".HI" in here.opcode or rest or a is None or b is None or by is None:
        return {}
    total = (a << by & _WORD) + b
    return _result(register, total) | _carries(out, total)


def _logic(here: Instruction, words: Words) -> Words:
    """LOP3.LUT [P,] Rd, a, b, c, table, P."""
    register, out, sources = _split(here)
    a, b, c, table = (_word(o, words) for o in sources[:4])
    if a is None or b is None or c is None or table is None:
        return {}
    value = 0
    for index in range(8):
        if table >> index & 1:
            chosen = (x if index & bit else ~x for bit, x in ((4, a), (2, b), (1, c)))
            value |= functools.reduce(operator.and_, chosen, _WORD)
    return _result(register, value) | dict.fromkeys(out, int(value != 0))


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}


def _compare(here: Instruction, words: Words) -> Words:
    """ISETP.(LT…)[.U32].(AND|OR|XOR)[.EX] P, P, a, b, P [, what the low words gave]."""
    first, second, *sources = here.operands
    _, kind, *modifiers = here.opcode.split(".")
    a, b = (_word(o, words) for o in sources[:2])
    other = _predicate(sources[2], words)
    found: bool | None = None
    if a is not None and b is not None and kind in _COMPARE:
        if "U32" not in modifiers:
            a, b = _signed(a), _signed(b)
        found = _COMPARE[kind](a, b)
        if "EX" in modifiers and (a == b or kind in ("EQ", "NE")):
            low = _predicate(sources[3], words)
            found = low if a == b else kind == "NE"
    inverse = None if found is None else not found
    return {first: _join(modifiers, found, other), second: _join(modifiers, inverse, other)}


def _join(modifiers: Sequence[str], a: bool | None, b: bool | None) -> bool | None:
    if "AND" in modifiers and (a is False or b is False):
        return False
    if "OR" in modifiers and (a is True or b is True):
        return True
    if a is None or b is None:
        return None
    return a and b if "AND" in modifiers else a or b if "OR" in modifiers else a != b


def _predicate_logic(here: Instruction, words: Words) -> Words:
    """PLOP3.LUT P, P, a, b, c, table, table."""
    first, second, *sources = here.operands
    known = [_predicate(o, words) for o in sources[:3]]
    tables = [_word(o, words) for o in sources[3:5]]
    if None in known or None in tables or len(tables) < 2:
        return {}
    index = sum(bit * bool(k) for bit, k in zip((4, 2, 1), known, strict=True))
    return {p: int(t or 0) >> index & 1 for p, t in zip((first, second), tables, strict=True)}


def _select(here: Instruction, words: Words) -> Words:
    """SEL Rd, a, b, P."""
    chosen = _predicate(here.operands[3], words)
    if chosen is None:
        return {}
    return _result(here.operands[0], _word(here.operands[1 if chosen else 2], words))


def _extend(here: Instruction, words: Words) -> Words:
    """SGXT[.U32] Rd, a, bits."""
    value, bits = (_word(o, words) for o in here.operands[1:3])
    if value is None or not bits:
        return {}
    value &= (1 << bits) - 1
    if ".U32" not in here.opcode and value >> (bits - 1):
        value -= 1 << bits
    return _result(here.operands[0], value)


def _extreme(here: Instruction, words: Words) -> Words:
    """VIMNMX[.U32] Rd, a, b, P: the smaller if P, else the larger."""
    a, b = (_word(o, words) for o in here.operands[1:3])
    smaller = _predicate(here.operands[3], words) if len(here.operands) > 3 else None
    if a is None or b is None or smaller is None:
        return {}
    if ".U32" not in here.opcode:
        a, b = _signed(a), _signed(b)
    return _result(here.operands[0], min(a, b) if smaller else max(a, b))


_OPERATIONS: dict[str, Callable[[Instruction, Words], Words]] = {
    **dict.fromkeys(("IADD3", "IADD", "VIADD", "UIADD3", "UIADD", "UVIADD"), _add),
    **dict.fromkeys(("IMAD", "UIMAD"), _multiply),
    **dict.fromkeys(("MOV", "UMOV", "CS2R", "R2UR"), _move),
    **dict.fromkeys(("SHF", "USHF"), _shift),
    **dict.fromkeys(("LEA", "ULEA"), _lea),
    **dict.fromkeys(("LOP3", "ULOP3"), _logic),
    **dict.fromkeys(("ISETP", "UISETP"), _compare),
    **dict.fromkeys(("PLOP3", "UPLOP3"), _predicate_logic),
    **dict.fromkeys(("SEL", "USEL"), _select),
    **dict.fromkeys(("SGXT", "USGXT"), _extend),
    **dict.fromkeys(("IMNMX", "VIMNMX", "UIMNMX", "UVIMNMX"), _extreme),
}
