"""Inline PTX of the gradients' kernel alone, beside its plain form; why, `ptx` says."""

import jax.numpy as jnp

from pallas_kernels.triton import ptx
from pallas_kernels.triton.ptx import BF16, Array

F32 = jnp.dtype(jnp.float32)


def _unpacked(source: str, low: str, high: str) -> str:
    """Both elements of a register of bfloat16 in float32, by way of `lo` and `hi`."""
    return (
        f"shl.b32 lo, {source}, 16; and.b32 hi, {source}, 0xffff0000; "
        f"mov.b32 {low}, lo; mov.b32 {high}, hi; "
    )


# a and b as two bfloat16 pieces, by way of c and d.
_HALVED = "cvt.rn.bf16x2.f32 $0, b, a; " + _unpacked("$0", "c", "d")
_HALVED += "sub.f32 a, a, c; sub.f32 b, b, d; cvt.rn.bf16x2.f32 $1, b, a; }"


def laid_out_as(x: Array, like: Array) -> Array:
    """x, by whatever thread holds the same element of `like`, a float32 array of its shape: Triton
    gives all operands of an operation one layout, a product's before a load's."""
    if x.dtype != BF16:
        return x
    return ptx._ptx("mov.b32 $0, $1;", "=r,r,f,f", 2, [x, like], [BF16], _first)[0]


def _first(x, like):
    return [x]


def on_level(x: Array, y: Array, paired: Array, level: Array) -> tuple[Array, Array]:
    """x and y where log2 of (r ^ c) | 1 is `level` (an integer), else 0, of squares [r, c]."""
    low = jnp.full(x.shape, jnp.left_shift(1, level), jnp.int32)
    if x.dtype != BF16:
        x, y = _on_level_plain(x, y, paired, low)
        return x, y
    asm = "{ .reg .b32 s; .reg .pred p; neg.s32 s, $6; and.b32 s, $4, s; setp.eq.s32 p, s, $6; "
    asm += "selp.b32 $0, $2, 0, p; selp.b32 $1, $3, 0, p; }"
    constraints = "=&r,=&r,r,r,r,r,r,r"
    x, y = ptx._ptx(asm, constraints, 2, [x, y, paired, low], [BF16] * 2, _on_level_plain)
    return x, y


def _on_level_plain(x, y, paired, low):
    inside, zero = (paired & -low) == low, jnp.zeros((), x.dtype)
    return [jnp.where(inside, x, zero), jnp.where(inside, y, zero)]


def decayed_choices(
    upper: Array, x: Array, y: Array, z: Array, distance: Array
) -> tuple[Array, Array, Array]:
    """(upper ? x : y) · 2^distance and (upper ? z : y) · 2^distance, in their dtype, to which the
    power is rounded first, and 2^distance in float32; `upper` is −1 or 0."""
    args = [x, y, z, upper, distance]
    if x.dtype != BF16:
        x, z, factor = _decayed_choices_plain(*args)
        return x, z, factor
    asm = "{ .reg .b32 s, t, z; .reg .f32 e, f; mov.b32 z, 0x80008000; "  # −0: x t + z = x t
    asm += ptx._exp2("$9", "$10") + "cvt.rn.bf16x2.f32 t, f, e; "
    asm += "lop3.b32 s, $7, $4, $5, 0xCA; fma.rn.bf16x2 $0, s, t, z; "
    asm += "lop3.b32 s, $7, $6, $5, 0xCA; fma.rn.bf16x2 $1, s, t, z; "
    asm += "mov.f32 $2, e; mov.f32 $3, f; }"
    constraints = "=&r,=&r,=&f,=&f,r,r,r,r,r,f,f"
    dtypes = [BF16, BF16, F32]
    x, z, factor = ptx._ptx(asm, constraints, 2, args, dtypes, _decayed_choices_plain)
    return x, z, factor


def _decayed_choices_plain(x, y, z, upper, distance):
    factor = jnp.exp2(distance)
    rounded = factor.astype(x.dtype).astype(F32)
    first, second = jnp.where(upper != 0, x, y), jnp.where(upper != 0, z, y)
    wide = first.astype(F32) * rounded, second.astype(F32) * rounded
    return [wide[0].astype(x.dtype), wide[1].astype(x.dtype), factor]


def accumulate(
    above: Array, below: Array, x: Array, factor: Array, upper: Array
) -> tuple[Array, Array]:
    """(above + f x, below) where `upper` is −1, (above, below + f x) where it is 0; all float32.
    Fused multiply-adds, which XLA's Triton does not contract to."""
    asm = "{ .reg .pred p; setp.ne.s32 p, $12, 0; "
    for i in range(2):
        a, b, x_, f = f"${i}", f"${2 + i}", f"${8 + i}", f"${10 + i}"
        asm += f"@p fma.rn.f32 {a}, {f}, {x_}, {a}; @!p fma.rn.f32 {b}, {f}, {x_}, {b}; "
    constraints = ",".join(["=&f"] * 4 + ["0", "1", "2", "3"] + ["f"] * 4 + ["r", "r"])
    args = [above, below, x, factor, upper]
    above, below = ptx._ptx(asm + "}", constraints, 2, args, [F32] * 2, _accumulate_plain)
    return above, below


def _accumulate_plain(above, below, x, factor, upper):
    added, zero = factor * x, jnp.zeros((), F32)
    return [
        above + jnp.where(upper != 0, added, zero),
        below + jnp.where(upper != 0, zero, added),
    ]


def decay_gradient(
    query: Array, bk: Array, key: Array, sums: tuple[Array, Array, Array], pieces: int
) -> list[Array]:
    """q s_0 + (b⊙k) s_1 − k s_2 as the sum of bfloat16 pieces (`ptx.halves`); s float32."""
    args = [query, bk, key, *sums]
    if query.dtype != BF16 or pieces != 2:
        return ptx.halves(_decay_gradient(*args), pieces)
    asm = "{ .reg .b32 lo, hi; .reg .f32 a, b, c, d; "
    asm += _unpacked("$2", "c", "d") + "mul.f32 a, c, $5; mul.f32 b, d, $6; "
    asm += _unpacked("$3", "c", "d") + "fma.rn.f32 a, c, $7, a; fma.rn.f32 b, d, $8, b; "
    asm += _unpacked("$4", "c", "d") + "neg.f32 c, c; neg.f32 d, d; "
    asm += "fma.rn.f32 a, c, $9, a; fma.rn.f32 b, d, $10, b; " + _HALVED
    constraints = "=&r,=&r,r,r,r,f,f,f,f,f,f"
    return ptx._ptx(asm, constraints, 2, args, [BF16] * 2, _decay_gradient_plain)


def _decay_gradient(query, bk, key, *sums):
    query, bk, key = query.astype(F32), bk.astype(F32), key.astype(F32)
    return query * sums[0] + bk * sums[1] - key * sums[2]


def _decay_gradient_plain(*args):
    return ptx.halves(_decay_gradient(*args))


def halved_product(x: Array, y: Array, pieces: int) -> list[Array]:
    """x y as the sum of bfloat16 pieces; y float32."""
    if x.dtype != BF16 or pieces != 2:
        return ptx.halves(x.astype(F32) * y, pieces)
    asm = "{ .reg .b32 lo, hi; .reg .f32 a, b, c, d; " + _unpacked("$2", "c", "d")
    asm += "mul.f32 a, c, $3; mul.f32 b, d, $4; " + _HALVED
    return ptx._ptx(asm, "=&r,=&r,r,f,f", 2, [x, y], [BF16] * 2, _halved_product_plain)


def _halved_product_plain(x, y):
    return ptx.halves(x.astype(F32) * y)


def multiply_add(x: Array, y: Array, z: Array) -> Array:
    """x y + z in float32, y and z float32."""
    if x.dtype == F32:
        asm = "fma.rn.f32 $0, $1, $2, $3;"
        return ptx._ptx(asm, "=f,f,f,f", 1, [x, y, z], [F32], _multiply_add_plain)[0]
    if x.dtype != BF16:
        return _multiply_add_plain(x, y, z)[0]
    asm = "{ .reg .b32 lo, hi; .reg .f32 c, d; " + _unpacked("$2", "c", "d")
    asm += "fma.rn.f32 $0, c, $3, $5; fma.rn.f32 $1, d, $4, $6; }"
    return ptx._ptx(asm, "=&f,=&f,r,f,f,f,f", 2, [x, y, z], [F32], _multiply_add_plain)[0]


def _multiply_add_plain(x, y, z):
    return [x.astype(F32) * y + z]
