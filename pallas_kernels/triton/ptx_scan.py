"""Inline PTX of the scans alone, beside its plain form; why, `ptx` says."""

import functools
import struct
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.triton import ptx
from pallas_kernels.triton.ptx import BF16, LOG2E, Array

F32 = jnp.dtype(jnp.float32)


def _unpacked(source: str) -> str:
    """Both elements of a register of bfloat16 in float32, as a and b."""
    return (
        f"shl.b32 lo, {source}, 16; and.b32 hi, {source}, 0xffff0000; "
        "mov.b32 a, lo; mov.b32 b, hi; "
    )


def _bits(x: float) -> str:
    """A float32 as PTX writes it."""
    return "0f" + struct.pack(">f", x).hex().upper()


def minus(x: Array) -> Array:
    """−x."""
    if x.dtype != BF16:
        return -x
    return ptx._ptx("xor.b32 $0, $1, 0x80008000;", "=r,r", 2, [x], [BF16], _minus_plain)[0]


def _minus_plain(x):
    return [-x]


def minus_rounded(x: Array, dtype: jnp.dtype) -> Array:
    """−x, float32, in `dtype`."""
    if dtype != BF16:
        return (-x).astype(dtype)
    asm = "{ cvt.rn.bf16x2.f32 $0, $2, $1; xor.b32 $0, $0, 0x80008000; }"
    return ptx._ptx(asm, "=r,f,f", 2, [x], [BF16], _minus_rounded_plain)[0]


def _minus_rounded_plain(x):
    return [-ptx._rounded(x)]


def rounded(x: Array) -> tuple[Array, Array]:
    """x float32 rounded to bfloat16, and the same in float32."""
    asm = "{ .reg .b32 lo, hi; cvt.rn.bf16x2.f32 $0, $4, $3; shl.b32 lo, $0, 16; "
    asm += "and.b32 hi, $0, 0xffff0000; mov.b32 $1, lo; mov.b32 $2, hi; }"
    first, wide = ptx._ptx(asm, "=&r,=&f,=&f,f,f", 2, [x], [BF16, F32], _rounded_plain)
    return first, wide


def _rounded_plain(x):
    return ptx._rounded(x), ptx._wide(ptx._rounded(x))


def add_times(total: Array, x: Array, y: Array) -> Array:
    """total + x y, float32 but for x: one fused operation."""
    if x.dtype != BF16:
        return total + x * y
    asm = "{ .reg .b32 lo, hi; .reg .f32 a, b; " + _unpacked("$4")
    asm += "fma.rn.f32 $0, a, $5, $2; fma.rn.f32 $1, b, $6, $3; }"
    args = [total, x, y]
    return ptx._ptx(asm, "=&f,=&f,f,f,r,f,f", 2, args, [F32], _add_times_plain)[0]


def _add_times_plain(total, x, y):
    return [total + ptx._wide(x) * y]


def raised(x: Array, row: Array, scale: float, dtype: jnp.dtype) -> tuple[Array, Array]:
    """x + row, and that times scale, both in `dtype`; x [C, V], row [V] float32."""
    rows = jnp.broadcast_to(row[None, :], x.shape)
    if x.dtype != BF16 or dtype != BF16:
        return _raised_plain(scale, dtype)(x, rows)
    asm = "{ .reg .b32 lo, hi; .reg .f32 a, b; " + _unpacked("$2")
    asm += "add.f32 a, a, $3; add.f32 b, b, $4; cvt.rn.bf16x2.f32 $0, b, a; "
    asm += f"mul.f32 a, a, {_bits(scale)}; mul.f32 b, b, {_bits(scale)}; "
    asm += "cvt.rn.bf16x2.f32 $1, b, a; }"
    args, plain = [x, rows], _raised_plain(scale, BF16)
    whole, scaled = ptx._ptx(asm, "=&r,=&r,r,f,f", 2, args, [BF16] * 2, plain)
    return whole, scaled


@functools.cache
def _raised_plain(scale: float, dtype: jnp.dtype) -> Callable[..., tuple[Array, Array]]:
    def plain(x, rows):
        whole = ptx._wide(x) + rows
        return whole.astype(dtype), (whole * scale).astype(dtype)

    return plain


def minus_gate(logits: Array, shift: Array, scale: float) -> Array:
    """−scale · σ(logits + shift); logits [C, K] and the result bfloat16, shift [K] float32."""
    # −1 / (1 + 2^(−log2 e · (x + shift))): the sign costs nothing here.
    rows = jnp.broadcast_to(shift[None, :] * -LOG2E, logits.shape)
    asm = "{ .reg .b32 lo, hi; .reg .f32 a, b; " + _unpacked("$1")
    for x, row in (("a", "$2"), ("b", "$3")):
        asm += f"fma.rn.f32 {x}, {x}, {_bits(-LOG2E)}, {row}; ex2.approx.ftz.f32 {x}, {x}; "
        asm += f"neg.f32 {x}, {x}; add.f32 {x}, {x}, {_bits(-1.0)}; rcp.approx.ftz.f32 {x}, {x}; "
        if scale != 1.0:
            asm += f"mul.f32 {x}, {x}, {_bits(scale)}; "
    asm += "cvt.rn.bf16x2.f32 $0, b, a; }"
    return ptx._ptx(asm, "=&r,r,f,f", 2, [logits, rows], [BF16], _minus_gate_plain(scale))[0]


@functools.cache
def _minus_gate_plain(scale: float) -> Callable[..., Sequence[Array]]:
    def plain(logits, rows):
        return [-ptx._rounded(scale * jax.nn.sigmoid(ptx._wide(logits) - rows / LOG2E))]

    return plain


def begin_inverse(x: Array, ordered: Array, dtype: jnp.dtype) -> tuple[Array, Array, Array]:
    """−(I + U) of a square as the sum of two of `dtype`, and I − U's lowest level, float32.

    Args:
      x: float32, −U above the diagonal, anything on it, zero below.
      ordered: r ^ c above the diagonal, 0 on it, more below.
      dtype: bfloat16 or float32.
    """
    if dtype != BF16:
        return _begin_inverse_plain(dtype)(x, ordered)
    # Of a pair of columns, the first is on the diagonal where the second is on the lowest level.
    asm = (
        "{ .reg .b32 lo, hi; .reg .f32 a, b, c, d; .reg .pred p, q; "
        "setp.eq.s32 p, $7, 1; setp.eq.s32 q, $7, 0; "
        "selp.f32 a, 0fBF800000, $4, p; selp.f32 b, 0fBF800000, $5, q; "
        "selp.f32 $2, 0f3F800000, 0f00000000, p; selp.f32 c, b, 0f00000000, p; "
        "selp.f32 $3, 0f3F800000, c, q; cvt.rn.bf16x2.f32 $0, b, a; "
        "shl.b32 lo, $0, 16; and.b32 hi, $0, 0xffff0000; mov.b32 c, lo; mov.b32 d, hi; "
        "sub.f32 a, a, c; sub.f32 b, b, d; cvt.rn.bf16x2.f32 $1, b, a; }"
    )
    dtypes, plain = [BF16, BF16, F32], _begin_inverse_plain(BF16)
    constraints = "=&r,=&r,=&f,=&f,f,f,r,r"
    first, second, inverse = ptx._ptx(asm, constraints, 2, [x, ordered], dtypes, plain)
    return first, second, inverse


@functools.cache
def _begin_inverse_plain(dtype: jnp.dtype) -> Callable[..., tuple[Array, Array, Array]]:
    def plain(x, ordered):
        minus = jnp.where(ordered == 0, -1.0, x)
        first = minus.astype(dtype)
        second = (minus - ptx._wide(first)).astype(dtype)
        return first, second, jnp.where(ordered == 0, 1.0, jnp.where(ordered == 1, x, 0.0))

    return plain


def level(x: Array, ordered: Array, low: int) -> Array:
    """x on the level `low` = 2, 4, 8, … of a square held transposed, else 0."""
    if x.dtype != BF16:
        return _level_plain(low)(x, ordered)[0]
    asm = f"{{ .reg .b32 s; .reg .pred p; and.b32 s, $2, {-low}; "
    asm += f"setp.eq.s32 p, s, {low}; selp.b32 $0, $1, 0, p; }}"
    return ptx._ptx(asm, "=r,r,r,r", 2, [x, ordered], [BF16], _level_plain(low))[0]


@functools.cache
def _level_plain(low: int) -> Callable[..., Sequence[Array]]:
    def plain(x, ordered):
        return _counted_level_plain(x, ordered, low)

    return plain


def counted_level(x: Array, ordered: Array, low: Array) -> Array:
    """`level`, from 1 on, of a level that a loop counts."""
    bound = jnp.broadcast_to(low, ordered.shape)
    if x.dtype != BF16:
        return _counted_level_plain(x, ordered, bound)[0]
    # The lowest level is the second column of some pairs.
    asm = (
        "{ .reg .b32 s, m; .reg .pred p; neg.s32 m, $4; and.b32 s, m, $3; setp.eq.s32 p, $4, 1; "
        "selp.b32 m, 0xffff0000, 0xffffffff, p; setp.eq.s32 p, s, $4; selp.b32 m, m, 0, p; "
        "and.b32 $0, m, $1; }"
    )
    args = [x, ordered, bound]
    return ptx._ptx(asm, "=&r,r,r,r,r,r", 2, args, [BF16], _counted_level_plain)[0]


def _counted_level_plain(x, ordered, bound):
    inside = (ordered >= bound) & (ordered < 2 * bound)
    return [jnp.where(inside, x, jnp.zeros((), x.dtype))]


def below(x: Array, ordered: Array, bound: int) -> Array:
    """x on the levels below `bound`, else 0, of a square held transposed."""
    if x.dtype != BF16:
        return _below_plain(bound)(x, ordered)[0]
    # Of a pair of columns, the first is on the diagonal where the second is on the lowest level.
    asm = "{ .reg .b32 s, m; .reg .pred p; sub.s32 s, $3, 1; "
    asm += "setp.eq.s32 p, $3, 1; selp.b32 m, 0xffff0000, 0xffffffff, p; "
    asm += f"setp.lt.u32 p, s, {bound - 1}; selp.b32 m, m, 0, p; and.b32 $0, m, $1; }}"
    return ptx._ptx(asm, "=&r,r,r,r", 2, [x, ordered], [BF16], _below_plain(bound))[0]


@functools.cache
def _below_plain(bound: int) -> Callable[..., Sequence[Array]]:
    def plain(x, ordered):
        inside = (ordered > 0) & (ordered < bound)
        return [jnp.where(inside, x, jnp.zeros((), x.dtype))]

    return plain
