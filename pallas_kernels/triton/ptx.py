"""Elementwise work as inline PTX, each operation beside the plain form that says what it computes.

Why: XLA's Triton neither packs bfloat16 arithmetic nor contracts to fused multiply-adds, computes
`exp2` with range checks in 4 instructions and a sigmoid in 18, and pushes every transposition up
through the elementwise operations that made its operand, computing them a second time. Where an
operand is bfloat16 these functions are a few packed instructions; elsewhere (float32 operands, a
device without PTX, interpret mode) the plain form runs.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax._src.pallas.triton import lowering  # no public module registers a lowering
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.interpreters import mlir

Array = jax.Array
LOG2E = 1.4426950408889634
LOWEST = -180.0  # base 2; two to this is 0 in float32, and sums of a span stay small
BF16 = jnp.dtype(jnp.bfloat16)

# A primitive of our own: `elementwise_inline_asm` of JAX 0.10 and 0.11 fails on several results.
_ptx_p = Primitive("carve_inline_ptx")
_ptx_p.multiple_results = True


@_ptx_p.def_abstract_eval
def _abstract(*avals, dtypes, **_):
    return [avals[0].update(dtype=dtype, weak_type=False) for dtype in dtypes]


def _plain(*args, plain, **_):
    return plain(*args)


_ptx_p.def_impl(_plain)
mlir.register_lowering(_ptx_p, mlir.lower_fun(_plain, multiple_results=True))


@lowering.register_lowering(_ptx_p)
def _lower(ctx, *args, asm, constraints, pack, **_):
    from jax._src.lib.triton import dialect

    types = [_tensor_type(ctx, aval) for aval in ctx.avals_out]
    found = dialect.ElementwiseInlineAsmOp(
        types, asm, constraints=constraints, pure=True, packed_element=pack, args=args
    )
    return list(found.results)


def _tensor_type(ctx, aval) -> ir.Type:
    return ir.RankedTensorType.get(aval.shape, mlir.dtype_to_ir_type(aval.dtype))


def _ptx(
    asm: str,
    constraints: str,
    pack: int,
    args: Sequence[Array],
    dtypes: Sequence[jnp.dtype],
    plain: Callable[..., Sequence[Array]],
) -> list[Array]:
    """Inline PTX on arrays of one shape, `pack` elements at a time.

    Args:
      asm: $0, $1, … are the results, then the arguments, in registers: bfloat16 in one for 2.
      constraints: of LLVM, in that order. Results need "=&" where an argument is read after one of
        them is written. A number ties an argument to a result, in whose register it starts: no copy
        where the argument is needed no more.
      pack: elements of an instance.
      args: the arguments.
      dtypes: of the results.
      plain: what it computes, in jax.numpy.
    """
    shape = args[0].shape
    assert all(a.shape == shape for a in args), [a.shape for a in args]
    dtypes = tuple(map(jnp.dtype, dtypes))
    return _ptx_p.bind(
        *args, asm=asm, constraints=constraints, pack=pack, dtypes=dtypes, plain=plain
    )


def _rounded(x: Array) -> Array:
    return x.astype(BF16)


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32)


def fence(x: Array) -> Array:
    """x, which no transposition is pushed through: XLA's `triton-xla-fold-transpose` stops at an
    operation of two results. Costs no instruction, but a copy that may be kept."""
    size = x.dtype.itemsize
    if size not in (2, 4):
        return x
    pack, kind, register = (2, "b32", "r") if size == 2 else (1, "f32", "f")
    if size == 4 and not jnp.issubdtype(x.dtype, jnp.floating):
        kind, register = "b32", "r"
    asm = f"{{ mov.{kind} $0, $2; mov.{kind} $1, $2; }}"
    constraints = f"=&{register},=&{register},{register}"
    return _ptx(asm, constraints, pack, [x], [x.dtype] * 2, _twice)[0]


def _twice(x):
    return x, x


_OPEN = "{ .reg .b32 s, t, z; .reg .f32 e, f; mov.b32 z, 0x80008000; "  # x t + −0 = x t


def _exp2(first: str, second: str) -> str:
    """e and f: two to the power of two registers."""
    return (
        f"ex2.approx.ftz.f32 e, {first}; ex2.approx.ftz.f32 f, {second}; "
        "cvt.rn.bf16x2.f32 t, f, e; "
    )


def _times_factors(source: str, target: str) -> str:
    """A pair of bfloat16 times a pair of factors t, rounded to bfloat16."""
    return f"fma.rn.bf16x2 {target}, {source}, t, z; "


def split(g: Array, pieces: int) -> list[Array]:
    """g · log2 e, at least `LOWEST`, as bfloat16 pieces whose sum it is: in two pieces to 2^-17 of
    its size, in three to float32's own precision. g float32."""
    if pieces != 2:
        return _split_plain(g, pieces)
    asm = (
        "{ .reg .b32 lo, hi; .reg .f32 a, b, c, d; "
        "mul.f32 a, $2, 0f3FB8AA3B; mul.f32 b, $3, 0f3FB8AA3B; "
        "max.f32 a, a, 0fC3340000; max.f32 b, b, 0fC3340000; cvt.rn.bf16x2.f32 $0, b, a; "
        "shl.b32 lo, $0, 16; and.b32 hi, $0, 0xffff0000; mov.b32 c, lo; mov.b32 d, hi; "
        "sub.f32 a, a, c; sub.f32 b, b, d; cvt.rn.bf16x2.f32 $1, b, a; }"
    )
    return _ptx(asm, "=&r,=&r,f,f", 2, [g], [BF16] * 2, _split_plain)


def _split_plain(g, pieces=2):
    return halves(jnp.maximum(g * LOG2E, LOWEST), pieces)


def halves(x: Array, pieces: int = 2) -> list[Array]:
    """x float32 as the sum of bfloat16 pieces."""
    found = []
    for _ in range(pieces):
        found.append(_rounded(x))
        x = x - _wide(found[-1])
    return found


def decayed(x: Array, distance: Array) -> Array:
    """x · 2^distance in the dtype of x, to which the power is rounded first: a packed product."""
    if x.dtype != BF16:
        return _decayed_plain(x, distance)[0]
    asm = _OPEN + _exp2("$3", "$4") + _times_factors("$2", "$0") + "mov.b32 $1, $0; }"
    return _ptx(asm, "=&r,=&r,r,f,f", 2, [x, distance], [BF16] * 2, _decayed_plain)[0]


def _decayed_plain(x, distance):
    return _twice(_scaled(x, jnp.exp2(distance)))


def _scaled(x, factor):
    """x times the factor, which is rounded to the dtype of x first, as the product is then."""
    return (_wide(x) * _wide(factor.astype(x.dtype))).astype(x.dtype)


def decayed_pair(x: Array, y: Array, distance: Array) -> tuple[Array, Array, Array]:
    """x · 2^distance and y · 2^distance in their dtype, as `decayed`, and 2^distance, float32."""
    if x.dtype != BF16:
        return _decayed_pair_plain(x, y, distance)
    asm = _OPEN + _exp2("$6", "$7") + _times_factors("$4", "$0") + _times_factors("$5", "$1")
    asm += "mov.f32 $2, e; mov.f32 $3, f; }"
    dtypes = [BF16, BF16, jnp.float32]
    constraints = "=&r,=&r,=&f,=&f,r,r,f,f"
    x, y, factor = _ptx(asm, constraints, 2, [x, y, distance], dtypes, _decayed_pair_plain)
    return x, y, factor


def _decayed_pair_plain(x, y, distance):
    factor = jnp.exp2(distance)
    return _scaled(x, factor), _scaled(y, factor), factor


def decayed_choice(
    upper: Array, x: Array, y: Array, z: Array, distance: Array
) -> tuple[Array, Array]:
    """(upper ? x : y) · 2^distance and z · 2^distance in their dtype (as `decayed`); `upper` is −1
    or 0."""
    if x.dtype != BF16:
        return _decayed_choice_plain(x, y, z, upper, distance)
    asm = _OPEN + _exp2("$7", "$8") + "lop3.b32 s, $5, $2, $3, 0xCA; "
    asm += _times_factors("s", "$0") + _times_factors("$4", "$1") + "}"
    args = [x, y, z, upper, distance]
    constraints = "=&r,=&r,r,r,r,r,r,f,f"
    x, z = _ptx(asm, constraints, 2, args, [BF16] * 2, _decayed_choice_plain)
    return x, z


def _decayed_choice_plain(x, y, z, upper, distance):
    factor = jnp.exp2(distance)
    chosen = jnp.where(upper != 0, x, y)
    return _scaled(chosen, factor), _scaled(z, factor)


def times(x: Array, y: Array) -> Array:
    """x y in their dtype."""
    if x.dtype != BF16:
        return x * y
    # A fused multiply-add of −0, since a packed product is known to 9.0 and later alone.
    asm = "{ .reg .b32 z; mov.b32 z, 0x80008000; fma.rn.bf16x2 $0, $1, $2, z; }"
    return _ptx(asm, "=r,r,r", 2, [x, y], [BF16], _times_plain)[0]


def _times_plain(x, y):
    return [_rounded(_wide(x) * _wide(y))]


def merge(kept: Array, found: Array, ordered: Array, bound: Array | int) -> Array:
    """found where ordered < bound, else kept; in kept's dtype, of a square whose columns come in
    pairs of one level.

    Args:
      kept: bfloat16 or float32.
      found: float32, rounded as kept is.
      ordered: `wy.order`.
      bound: 2 or more; a loop may count it.
    """
    bounds = jnp.broadcast_to(bound, ordered.shape)
    if kept.dtype != BF16:
        return jnp.where(ordered < bounds, found.astype(kept.dtype), kept)
    asm = "{ .reg .b32 s; .reg .pred p; setp.lt.s32 p, $4, $6; "
    asm += "cvt.rn.bf16x2.f32 s, $3, $2; selp.b32 $0, s, $1, p; }"
    args = [kept, found, ordered, bounds]
    return _ptx(asm, "=&r,r,f,f,r,r,r,r", 2, args, [BF16], _merge_plain)[0]


def _merge_plain(kept, found, ordered, bounds):
    return [jnp.where(_of_first(ordered) < bounds, _rounded(found), kept)]


def merge_both(
    kept: Array,
    wide: Array,
    found: Array,
    other: Array,
    ordered: Array,
    bound: Array | int,
) -> tuple[Array, Array]:
    """(`merge` of kept and found, `merge` of wide and other), wide float32."""
    bounds = jnp.broadcast_to(bound, ordered.shape)
    if kept.dtype != BF16:
        return merge(kept, found, ordered, bound), jnp.where(ordered < bounds, other, wide)
    asm = "{ .reg .b32 s; .reg .pred p; setp.lt.s32 p, $10, $12; "
    asm += "cvt.rn.bf16x2.f32 s, $7, $6; selp.b32 $0, s, $3, p; "
    asm += "selp.f32 $1, $8, $4, p; selp.f32 $2, $9, $5, p; }"
    args, dtypes = [kept, wide, found, other, ordered, bounds], [BF16, jnp.float32]
    constraints = "=&r,=&f,=&f,r,f,f,f,f,f,f,r,r,r,r"
    kept, wide = _ptx(asm, constraints, 2, args, dtypes, _merge_both_plain)
    return kept, wide


def _merge_both_plain(kept, wide, found, other, ordered, bounds):
    inside = _of_first(ordered) < bounds
    return [jnp.where(inside, _rounded(found), kept), jnp.where(inside, other, wide)]


def merge_lowest(
    kept: Array, wide: Array, found: Array, diagonal: Array, other: Array, ordered: Array
) -> tuple[Array, Array]:
    """`merge_both` of the lowest level, whose pairs of columns reach the diagonal or end above it:
    (found where ordered is 1, diagonal where it is 0), (other where it is 1, 0 where it is 0), both
    0 above the diagonal in blocks of two tokens; elsewhere what was kept."""
    if kept.dtype != BF16:  # what is above the diagonal was kept as 0
        lowest = jnp.where(ordered == 1, found, diagonal).astype(kept.dtype)
        other = jnp.where(ordered == 1, other, 0.0)
        inside = ordered < 2
        return jnp.where(inside, lowest, kept), jnp.where(inside, other, wide)
    asm = (
        "{ .reg .b32 s; .reg .f32 a, b, t, z; .reg .pred p, q; mov.f32 z, 0f00000000; "
        "setp.lt.s32 p, $12, 2; setp.eq.s32 q, $12, 1; "
        "selp.f32 a, $6, $8, q; selp.f32 b, $9, z, q; selp.f32 t, $10, z, q; "
        "cvt.rn.bf16x2.f32 s, b, a; selp.b32 $0, s, $3, p; "
        "selp.f32 $1, t, $4, p; selp.f32 $2, z, $5, p; }"
    )
    args = [kept, wide, found, diagonal, other, ordered]
    constraints = "=&r,=&f,=&f,r,f,f,f,f,f,f,f,f,r,r"
    kept, wide = _ptx(asm, constraints, 2, args, [BF16, jnp.float32], _merge_lowest_plain)
    return kept, wide


def _merge_lowest_plain(kept, wide, found, diagonal, other, ordered):
    zero, inside = jnp.zeros((), jnp.float32), _of_first(ordered) < 2
    lowest = jnp.where(ordered == 1, found, jnp.where(ordered == 0, diagonal, zero))
    scores = jnp.where(inside, lowest.astype(kept.dtype), kept)
    return [scores, jnp.where(inside, jnp.where(ordered == 1, other, zero), wide)]


def _of_first(x: Array) -> Array:
    """The first column of each pair, at both: what an instruction asks of `ordered`."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return jnp.broadcast_to(pairs[..., :1], pairs.shape).reshape(x.shape)


def level_negated(x: Array, ordered: Array, level: int) -> Array:
    """−x on level 2^`level` of a square (1 at least, so that columns come in pairs), else 0."""
    low = 1 << level
    if x.dtype != BF16:
        return jnp.where((ordered >= low) & (ordered < 2 * low), -x, jnp.zeros((), x.dtype))
    asm = "{ .reg .b32 s; .reg .pred p; xor.b32 s, $1, 0x80008000; "
    asm += f"and.b32 $0, $2, {-low}; setp.eq.s32 p, $0, {low}; selp.b32 $0, s, 0, p; }}"
    return _ptx(asm, "=&r,r,r,r", 2, [x, ordered], [BF16], _level_negated_plain(level))[0]


@functools.cache
def _level_negated_plain(level: int) -> Callable[..., Sequence[Array]]:
    def plain(x, ordered):
        return [jnp.where((ordered >> level) == 1, -x, jnp.zeros((), x.dtype))]

    return plain


def exp2(x: Array) -> Array:
    """2^x, float32, in one instruction."""
    return _ptx("ex2.approx.ftz.f32 $0, $1;", "=f,f", 1, [x], [jnp.float32], _exp2_plain)[0]


def _exp2_plain(x):
    return [jnp.exp2(x)]
