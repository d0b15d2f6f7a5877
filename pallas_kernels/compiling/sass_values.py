"""Carries out the few integer instructions of machine code (SASS) that steer its jumps.

Values are 32-bit words by register, predicates 0 or 1; None is what only the GPU will know.
"""

import functools
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_WORD = 0xFFFFFFFF
Words = dict[str, int | None]


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


_REGISTER = re.compile(r"(U?R)(\d+)$")
_PREDICATE = re.compile(r"U?P[\dT]$")
_WRITE_NOTHING = {"STG", "STS", "STL", "STSM", "BAR", "BRA", "EXIT", "LDGSTS", "RED", "NOP"}


def written(instruction: Instruction) -> list[str]:
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


def read(instruction: Instruction) -> list[str]:
    """Registers and predicates that decide what an instruction writes."""
    found = [instruction.guard.lstrip("!")] if instruction.guard else []
    for operand in instruction.operands:
        found += re.findall(r"\bU?[RP]\d+\b", operand)
        if ".WIDE" in instruction.opcode or ".64" in instruction.opcode:
            pairs = re.findall(r"\b(U?R)(\d+)\b", operand)
            found += [f"{kind}{int(number) + 1}" for kind, number in pairs]
    return found


def carry_out(here: Instruction, words: Words) -> None:
    """Sets what an instruction writes: its result, or None where that is not known."""
    guard = predicate(here.guard, words) if here.guard else True
    if guard is False:
        return
    results: Words = {}
    if guard is not None and here.name in OPERATIONS:
        results = OPERATIONS[here.name](here, words)
    words.update({name: results.get(name) for name in written(here)})


def predicate(text: str, words: Words) -> bool | None:
    """Whether a predicate such as `!P0` holds, or None."""
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
    results = {*written(here), "PT", "UPT"}
    operands = list(here.operands)
    first = next(i for i, o in enumerate(operands) if not _PREDICATE.match(o))
    last = first + 1
    while last < len(operands) and operands[last] in results and _PREDICATE.match(operands[last]):
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
    value = predicate(text, words)
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
    other = predicate(sources[2], words)
    found: bool | None = None
    if a is not None and b is not None and kind in _COMPARE:
        if "U32" not in modifiers:
            a, b = _signed(a), _signed(b)
        found = _COMPARE[kind](a, b)
        if "EX" in modifiers and (a == b or kind in ("EQ", "NE")):
            low = predicate(sources[3], words)
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
    known = [predicate(o, words) for o in sources[:3]]
    tables = [_word(o, words) for o in sources[3:5]]
    if None in known or None in tables or len(tables) < 2:
        return {}
    index = sum(bit * bool(k) for bit, k in zip((4, 2, 1), known, strict=True))
    return {p: int(t or 0) >> index & 1 for p, t in zip((first, second), tables, strict=True)}


def _select(here: Instruction, words: Words) -> Words:
    """SEL Rd, a, b, P."""
    chosen = predicate(here.operands[3], words)
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
    smaller = predicate(here.operands[3], words) if len(here.operands) > 3 else None
    if a is None or b is None or smaller is None:
        return {}
    if ".U32" not in here.opcode:
        a, b = _signed(a), _signed(b)
    return _result(here.operands[0], min(a, b) if smaller else max(a, b))


def _load(here: Instruction, words: Words) -> Words:
    """LDG: what our kernels load to steer a loop is the zero of `wy.order`, nothing else."""
    return dict.fromkeys(written(here), 0)


OPERATIONS: dict[str, Callable[[Instruction, Words], Words]] = {
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
    "LDG": _load,
    **dict.fromkeys(("IMNMX", "VIMNMX", "UIMNMX", "UVIMNMX"), _extreme),
}
