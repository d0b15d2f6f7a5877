"""Runs a string of inline PTX on NumPy registers, as Triton's `elementwise_inline_asm` would.

Only what the kernels use is known; an instruction that is not raises, so that a new one is written
down here from NVIDIA's manual (PTX ISA) and not guessed. Every register is a row of 32-bit words,
one for each instance of the string.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)
Words = np.ndarray  # uint32, one for each instance


def f32(words: Words) -> np.ndarray:
    """As float32."""
    return words.view(np.float32)


def words(values: np.ndarray) -> Words:
    """Bits of values rounded to float32."""
    return np.ascontiguousarray(values.astype(np.float32)).view(np.uint32)


def _flushed(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float32)
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)


def _halves(register: Words) -> tuple[np.ndarray, np.ndarray]:
    """Low and high bfloat16 of each word in float64."""
    pair = register.view(np.uint16).reshape(-1, 2).view(BF16).astype(np.float64)
    return pair[:, 0], pair[:, 1]


def _packed(low: np.ndarray, high: np.ndarray) -> Words:
    pair = np.stack([low, high], axis=1).astype(np.float32).astype(BF16)
    return np.ascontiguousarray(pair).view(np.uint32).reshape(-1)


def _bitwise(table: int, *inputs: Words) -> Words:
    """lop3: the table's bit 4a + 2b + c is the result for bits a, b, c."""
    a, b, c = inputs
    found = np.zeros_like(a)
    for case in range(8):
        if table >> case & 1:
            chosen = [x if case >> i & 1 else ~x for x, i in ((a, 2), (b, 1), (c, 0))]
            found |= chosen[0] & chosen[1] & chosen[2]
    return found


def _permuted(a: Words, b: Words, selector: Words) -> Words:
    """prmt in its default mode: four bytes of b:a, each replicating its sign if bit 3 is set."""
    source = np.stack([a, b], axis=1).view(np.uint8)
    found = np.zeros_like(a)
    for i in range(4):
        nibble = selector >> np.uint32(4 * i)
        byte = np.take_along_axis(source, (nibble & np.uint32(7)).astype(np.int64)[:, None], 1)
        byte = byte[:, 0].astype(np.uint32)
        sign = np.where(byte & 0x80, np.uint32(0xFF), np.uint32(0))
        found |= np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * i)
    return found


def _packed_fma(a: Words, b: Words, c: Words) -> Words:
    return _packed(*(x * y + z for x, y, z in zip(_halves(a), _halves(b), _halves(c), strict=True)))


def _wide(function: Callable[..., np.ndarray]) -> Callable[..., Words]:
    """An operation of float32, computed in float64 and rounded once."""
    return lambda *inputs: words(function(*(f32(x).astype(np.float64) for x in inputs)))


def _to_zero(function: Callable[..., np.ndarray]) -> Callable[..., Words]:
    """The same, denormals flushed."""
    return lambda x: words(_flushed(function(_flushed(f32(x)).astype(np.float64))))


OPERATIONS: dict[str, Callable[..., Words]] = {
    "mov.b32": lambda x: x,
    "mov.f32": lambda x: x,
    "shl.b32": lambda x, n: np.where(n < 32, x << np.minimum(n, np.uint32(31)), np.uint32(0)),
    "shr.u32": lambda x, n: np.where(n < 32, x >> np.minimum(n, np.uint32(31)), np.uint32(0)),
    "and.b32": operator.and_,
    "or.b32": operator.or_,
    "xor.b32": operator.xor,
    "not.b32": operator.invert,
    "neg.s32": lambda x: ~x + np.uint32(1),
    "add.s32": operator.add,
    "sub.s32": operator.sub,
    "neg.f32": lambda x: x ^ np.uint32(0x80000000),
    "abs.f32": lambda x: x & np.uint32(0x7FFFFFFF),
    "add.f32": _wide(operator.add),
    "add.rn.f32": _wide(operator.add),
    "sub.f32": _wide(operator.sub),
    "mul.f32": _wide(operator.mul),
    "mul.rn.f32": _wide(operator.mul),
    "max.f32": _wide(np.fmax),
    "min.f32": _wide(np.fmin),
    "fma.rn.f32": _wide(lambda x, y, z: x * y + z),
    "ex2.approx.ftz.f32": _to_zero(np.exp2),
    "rcp.approx.ftz.f32": _to_zero(np.reciprocal),
    "rsqrt.approx.ftz.f32": _to_zero(lambda x: 1 / np.sqrt(x)),
    "tanh.approx.f32": _wide(np.tanh),
    "cvt.rn.bf16x2.f32": lambda high, low: _packed(f32(low), f32(high)),
    "fma.rn.bf16x2": _packed_fma,
    "lop3.b32": lambda a, b, c, table: _bitwise(int(table[0]), a, b, c),
    "prmt.b32": _permuted,
}
COMPARISONS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
TYPES = {"s32": np.int32, "u32": np.uint32, "b32": np.uint32, "f32": np.float32}


class Machine:
    """Registers of all instances, and the rules that a compiler takes on trust.

    Raises ValueError for an unknown instruction or register, for what is read before it is
    written, for a written argument, and for an argument read after a result that may share its
    register ("=" without "&").

    Args:
      results: constraints of the results, such as "=&r".
      inputs: words of the arguments' registers, which follow the results'.
      tied: result by the place of the argument that starts in its register; the argument has no
        other.
    """

    def __init__(
        self, results: Sequence[str], inputs: Sequence[Words], tied: Mapping[int, int]
    ) -> None:
        self.results = list(results)
        self.count = len(inputs[0])
        self.values: dict[str, Words] = {
            f"${tied[i] if i in tied else len(results) + i}": value
            for i, value in enumerate(inputs)
        }
        self.arguments = set(self.values) - {f"${result}" for result in tied.values()}
        self.predicates: dict[str, np.ndarray] = {}
        self.declared = {f"${i}" for i in range(len(results))}
        self.overwritten: list[str] = []  # results whose register may have been an argument's

    def run(self, asm: str) -> list[Words]:
        """The results' registers after the string."""
        for line in asm.strip().removeprefix("{").removesuffix("}").split(";"):
            if line.strip():
                self._step(line.strip())
        return [self._read(f"${i}") for i in range(len(self.results))]

    def _step(self, line: str) -> None:
        if line.startswith(".reg"):
            _, kind, names = line.split(maxsplit=2)
            if kind not in (".pred", ".b32", ".f32", ".s32", ".u32"):
                raise ValueError(f"registers of kind {kind}")
            self.declared |= {name.strip() for name in names.split(",")}
            return
        guard, name, rest = re.fullmatch(r"(?:@(!?\w+)\s+)?(\S+)\s+(.*)", line).groups()
        target, *sources = (part.strip() for part in rest.split(","))
        active = np.ones(self.count, bool)
        if guard:
            active = self._predicate(guard.removeprefix("!")) ^ guard.startswith("!")
        self._execute(name, target, sources, active)

    def _execute(self, name: str, target: str, sources: list[str], active: np.ndarray) -> None:
        if target not in self.declared:
            raise ValueError(f"{target} is no result and was not declared")
        if name.startswith("setp."):
            _, comparison, kind = name.split(".")
            a, b = (self._read(source).view(TYPES[kind]) for source in sources)
            self.predicates[target] = COMPARISONS[comparison](a, b)
            return
        if name.startswith("selp."):
            a, b = (self._read(source) for source in sources[:2])
            found = np.where(self._predicate(sources[2]), a, b)
        elif name in OPERATIONS:
            found = OPERATIONS[name](*(self._read(source) for source in sources))
        else:
            raise ValueError(f"unknown instruction {name}")
        if not active.all():
            found = np.where(active, found, self._read(target))
        self.values[target] = found
        if target.startswith("$") and "&" not in self.results[int(target[1:])]:
            self.overwritten.append(target)

    def _predicate(self, name: str) -> np.ndarray:
        if name not in self.predicates:
            raise ValueError(f"predicate {name} is read before it is set")
        return self.predicates[name]

    def _read(self, source: str) -> Words:
        if source in self.arguments and self.overwritten:
            raise ValueError(f"{source} is read after {self.overwritten[0]}, which needs =&")
        if source in self.values:
            return self.values[source]
        if re.fullmatch(r"0f[0-9a-fA-F]{8}", source):
            constant = int(source[2:], 16)
        elif re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", source):
            constant = int(source, 0) & 0xFFFFFFFF
        else:
            raise ValueError(f"{source} is read before it is written")
        return np.full(self.count, constant, np.uint32)


def run(
    asm: str,
    constraints: str,
    pack: int,
    args: Sequence[np.ndarray],
    dtypes: Sequence[np.dtype],
) -> list[np.ndarray]:
    """The results of `triton.ptx`'s inline PTX on arrays of one shape.

    `pack` neighbours along the last axis go into an instance: two bfloat16 to a register, the first
    in its low half; anything of 32 bits in one each.

    Raises:
      ValueError: constraints that do not fit the arrays, or as `Machine`.
    """
    shape = args[0].shape
    given = constraints.split(",")
    made = [_registers(np.dtype(dtype), pack) for dtype in dtypes]
    taken = [_registers(array.dtype, pack) for array in args]
    expected = ["=" + kind for kind in made] + taken
    results = [constraint for constraint in given if constraint.startswith("=")]
    tied = {i: int(c) for i, c in enumerate(given[len(results) :]) if c.isdigit()}
    plain = [results[int(c)].strip("=&") if c.isdigit() else c.replace("&", "") for c in given]
    if plain != [kind for kinds in expected for kind in _each(kinds)]:
        raise ValueError(f"constraints {constraints} for results {made} and arguments {taken}")
    inputs = []
    for array, kinds in zip(args, taken, strict=True):
        register = np.ascontiguousarray(array).reshape(-1).view(np.uint32).reshape(-1, len(kinds))
        inputs += [np.ascontiguousarray(register[:, i]) for i in range(len(kinds))]
    with np.errstate(all="ignore"):  # infinities and their like are results, as on the chip
        found = Machine(results, inputs, tied).run(asm)
    arrays = []
    for dtype, kinds in zip(dtypes, made, strict=True):
        here, found = found[: len(kinds)], found[len(kinds) :]
        arrays.append(np.stack(here, axis=1).reshape(-1).view(np.dtype(dtype)).reshape(shape))
    return arrays


def _registers(dtype: np.dtype, pack: int) -> str:
    """A letter for each register of `pack` elements."""
    size = dtype.itemsize * pack
    if size % 4:
        raise ValueError(f"{pack} elements of {dtype} fill no register")
    return ("f" if dtype == np.float32 else "r") * (size // 4)


def _each(kinds: str) -> list[str]:
    return ["=" + kind for kind in kinds[1:]] if kinds.startswith("=") else list(kinds)
