"""What the scans in Mosaic GPU are written with: operands in shared memory, products, copies.

A state, R and outputs are held transposed in the registers of a warpgroup, 64 value channels each:
the first operand of a tensor-core product may lie in registers, the second lies in shared memory,
read as it is or transposed. Lowered by warpgroup lane (`LoweringSemantics.Lane`), where layouts are
chosen here and not inferred.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu

from pallas_kernels.blocks.decay import SPAN
from pallas_kernels.blocks.wy import Array

plgpu: Any = mosaic_gpu  # whose names differ among the releases of JAX that import it
TILE = SPAN  # tokens of a tile
BLOCK = 64  # value channels of a warpgroup: the rows of a product on Hopper
F32, BF16 = jnp.float32, jnp.bfloat16
SQUARE = plgpu.Layout.WGMMA
ROW = plgpu.Layout.WGMMA.reduce(0)  # one entry for each column of a product
COLUMN = plgpu.Layout.WGMMA.reduce(1)  # one entry for each row of a product


class Program(NamedTuple):
    """Where a program and its warpgroup are: batch row, value head, first value channel of the
    program, number of the warpgroup."""

    row: Any
    head: Any
    block: Any
    group: Any

    @property
    def channels(self) -> Any:
        """Value channels of the warpgroup."""
        return pl.ds(self.block + self.group * BLOCK, BLOCK)


def compiler_params() -> Any:
    """The compiler parameters of every kernel here."""
    return plgpu.CompilerParams(
        approx_math=True,
        unsafe_no_auto_barriers=True,  # what a warpgroup writes and reads, it orders itself
        lowering_semantics=plgpu.LoweringSemantics.Lane,
    )


def interpreter(interpret: bool) -> Any:
    """The `interpret` of a kernel."""
    return plgpu.InterpretGPUParams(detect_races=True) if interpret else None


def operand_memory(*shape: int) -> Any:
    """Shared memory [..., rows, columns] bfloat16 that products read, swizzled as they want it."""
    swizzle = plgpu.find_swizzle(shape[-1] * 16)
    transforms = (plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle))
    return plgpu.SMEM(shape, BF16, transforms=transforms)


def transposed(ref: Any) -> Any:
    """The same array as [columns, rows]."""
    return ref.transpose((1, 0))


def load(ref: Any, layout: Any = SQUARE) -> Array:
    """Read an array into registers."""
    return plgpu.load(ref, layout=layout, optimized=False)


def along_rows(row: Array, shape: tuple[int, int]) -> Array:
    """[columns] as [rows, columns]."""
    return jax.lax.broadcast_in_dim(row, shape, [1])


class Accumulator:
    """A sum of products a b [rows, columns] float32, each begun where it is added.

    Interpreted, it is a value: Mosaic GPU's interpreter knows no first operand in registers.
    """

    def __init__(self, ref: Any, shape: tuple[int, int]) -> None:
        self._ref = ref
        self._value: Any = jnp.zeros(shape, F32) if ref is None else None

    def add(self, a: Array, b: Any) -> None:
        """Add a product of `a` [rows, n] bfloat16 in registers, `b` [n, columns] in memory."""
        if self._ref is None:
            wide = plgpu.load(b, optimized=False).astype(F32)
            self._value = self._value + jnp.dot(a.astype(F32), wide, precision="highest")
        else:
            plgpu.wgmma(self._ref, a, b)

    def wait(self) -> None:
        """Waits for the products so far, whose first operands' registers are then free."""
        if self._ref is not None:
            plgpu.wgmma_wait(0)

    def read(self) -> Array:
        """The sum, once all products are done."""
        if self._ref is None:
            return self._value
        # Without the barrier the compiler was seen to move what follows before the wait: zeros.
        return jax.lax.optimization_barrier(self._ref[...])


def accumulate(body: Callable[[Accumulator], Any], shape: tuple[int, int], interpret: bool) -> Any:
    """body(accumulator), which begins as zero. Registers are taken here and given back after it, so
    that what is accumulated late is asked for late."""
    if interpret:
        return body(Accumulator(None, shape))
    return pl.run_scoped(lambda ref: body(Accumulator(ref, shape)), plgpu.ACC(shape, F32))


def multiply(
    pairs: Iterable[tuple[Array, Any]],
    shape: tuple[int, int],
    interpret: bool,
    start: Array | None = None,
) -> Array:
    """start + the sum of the products a b of pairs, `a` in registers and `b` in memory."""

    def body(found: Accumulator) -> Array:
        for a, b in pairs:
            found.add(a, b)
        return found.read()

    if start is None or interpret:
        found = accumulate(body, shape, interpret)
        return found if start is None else start + found

    def add(ref: Any) -> None:
        for a, b in pairs:
            plgpu.wgmma(ref, a, b)

    return jax.lax.optimization_barrier(pl.run_state(add)(plgpu.ACC.init(start)))
