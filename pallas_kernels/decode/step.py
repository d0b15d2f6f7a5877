"""The decode step: one token of the gated delta rule for many sequences, state in place.

For each value head, with state S of K × V in float32 (arXiv 2605.22791, eq. 9-10):

    S̄ = Diag(exp g) S        S' = S̄ + k (w⊙v − S̄ᵀ(b⊙k))ᵀ        o = S'ᵀ (scale · q)

A program owns all of K and a block of V of one head: what it reads of S it reads once, edits and
writes back to the same place, so a step moves 8·B·N·K·V bytes and little else. Two kernels stand
behind `decode_step`: Pallas (lowered through Triton), here, and an official Triton kernel in
`triton_step.py`. Sizes that are no powers of two are masked, never padded: a copy of the state
would double the traffic.

Under `jit` a step is this one kernel and nothing else. On an H100 (16 heads, K = V = 128, bfloat16)
it moves 87% of a copy's bytes per second at batch 64 and 91% at 512. At batch 1 there are 2 MB to
move, from and to the cache, and all is latency: 11.4 µs per step were measured in a compiled loop
whose body is two launches, the step's and that of XLA's kernel that counts the turns. What is left
to win is in the launches and not in the kernel, whose loads, two reductions and stores should take
2 to 3 µs (reasoned, not measured): so time it among other kernels, or in an unrolled loop.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.decode.step_sizes import (
    StepInputs,
    StepSizes,
    StepTiles,
    check_backend,
    check_inputs,
    default_tiles,
    output_type,
)


def decode_step(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    log_decay: jax.Array,
    erase: jax.Array,
    write: jax.Array,
    memory: jax.Array,
    *,
    scale: float,
    backend: str = "pallas",
    interpret: bool = False,
    tiles: StepTiles | None = None,
    output_dtype: jnp.dtype | str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One token of the gated delta rule for every sequence and head.

    Args:
      query, key: [B, H, K], bfloat16, float16 or float32; K up to 256.
      value: [B, N, V], N a multiple of H; value head n reads key head n // (N // H).
      log_decay: g ≤ 0, [B, H, K], or [B, H, 1] for one gate per head.
      erase: b, [B, H, K] or [B, H, 1].
      write: w, [B, N, V] or [B, N, 1].
      memory: S, [B, N, K, V] float32; donate it under `jit` and it is edited in place.
      scale: factor of the query, a Python number.
      backend: "pallas", or "triton" for the official Triton kernel (needs jax-triton).
      interpret: run the Pallas kernel in interpret mode, on any device.
      tiles: how the work is cut; by shape if None.
      output_dtype: bfloat16, float16 or float32; value's if None.

    Returns:
      The output [B, N, V] and the memory after the token, float32. Reverse-mode
      gradients are exact and those of `plain_step`: no kernel computes them.

    Raises:
      ValueError: an unknown backend, or shapes that do not fit.
      TypeError: a memory that is not float32.
      NotImplementedError: a dtype or K that no kernel takes or gives; "triton" without
        jax-triton, or in interpret mode.
    """
    inputs = StepInputs(query, key, value, log_decay, erase, write)
    sizes = check_inputs(inputs, memory)
    check_backend(backend, interpret)
    tiles = default_tiles(sizes) if tiles is None else tiles
    dtype = output_type(value if output_dtype is None else output_dtype)
    return _step(inputs, memory, sizes, tiles, float(scale), dtype, backend, interpret)


def step_tile(inputs: StepInputs, memory: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
    """The step of one head, or of a block of its value channels: what every kernel computes.

    Args:
      inputs: query, key [K], value [V], gates [K] or [V], or [] for one per head; any float dtype.
      memory: [K, V] float32.
      scale: factor of the query.

    Returns:
      Output [V] and memory [K, V], float32.
    """
    query, key, value, log_decay, erase, write = (x.astype(jnp.float32) for x in inputs)
    decay = jnp.exp(log_decay)
    memory = (decay[:, None] if decay.ndim else decay) * memory
    residual = write * value - jnp.sum(memory * (erase * key)[:, None], axis=0)
    memory = memory + key[:, None] * residual[None, :]
    return jnp.sum(memory * (scale * query)[:, None], axis=0), memory


def plain_step(
    inputs: StepInputs, memory: jax.Array, scale: float, dtype: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """`decode_step` without a kernel, in jnp: the same tile mathematics on every head.

    Args:
      inputs: as `decode_step` takes them.
      memory: [B, N, K, V] float32.
      scale: factor of the query.
      dtype: of the output; value's if None.

    Returns:
      As `decode_step`.
    """
    heads = inputs.key.shape[1]
    shape = inputs.value.shape

    def gate(x: jax.Array) -> jax.Array:
        return x[..., 0] if x.shape[-1] == 1 else x

    def grouped(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], heads, -1, *x.shape[2:])

    grouped_inputs = StepInputs(
        inputs.query,
        inputs.key,
        grouped(inputs.value),
        gate(inputs.log_decay),
        gate(inputs.erase),
        gate(grouped(inputs.write)),
    )
    step = functools.partial(step_tile, scale=scale)
    axes: Any = StepInputs(None, None, 0, None, None, 0)  # type: ignore[arg-type]
    over_group = jax.vmap(step, in_axes=(axes, 0))
    output, new = jax.vmap(jax.vmap(over_group))(grouped_inputs, grouped(memory))
    return output.reshape(shape).astype(dtype or inputs.value.dtype), new.reshape(memory.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5, 6, 7))
def _step(
    inputs: StepInputs,
    memory: jax.Array,
    sizes: StepSizes,
    tiles: StepTiles,
    scale: float,
    dtype: str,
    backend: str,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    if backend == "triton":
        from pallas_kernels.decode import (
            triton_step,  # needs triton; jax alone must do for the rest
        )

        return triton_step.triton_step(inputs, memory, sizes, tiles, scale, dtype)
    return _pallas_step(inputs, memory, sizes, tiles, scale, dtype, interpret)


def _step_forward(inputs: StepInputs, memory: jax.Array, *static) -> tuple:
    return _step(inputs, memory, *static), (inputs, memory)


def _step_backward(
    sizes: StepSizes,
    tiles: StepTiles,
    scale: float,
    dtype: str,
    backend: str,
    interpret: bool,
    saved: tuple,
    gradients: tuple,
) -> tuple:
    _, pull = jax.vjp(functools.partial(plain_step, scale=scale, dtype=dtype), *saved)
    return pull(gradients)


_step.defvjp(_step_forward, _step_backward)


def _pallas_step(
    inputs: StepInputs,
    memory: jax.Array,
    sizes: StepSizes,
    tiles: StepTiles,
    scale: float,
    dtype: str,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """The Pallas kernel on [heads, channels] views; a program is one head and one block of V."""
    block_key, block_value = sizes.block_key, tiles.block_value
    blocks = pl.cdiv(sizes.value_channels, block_value)

    def key_row(channels: int) -> pl.BlockSpec:
        block = 1 if channels == 1 else block_key
        return pl.BlockSpec((None, block), lambda p: (lax.div(p, blocks * sizes.group), 0))

    def value_row(channels: int) -> pl.BlockSpec:
        if channels == 1:
            return pl.BlockSpec((None, 1), lambda p: (lax.div(p, blocks), 0))
        return pl.BlockSpec((None, block_value), lambda p: (lax.div(p, blocks), lax.rem(p, blocks)))

    tile = pl.BlockSpec(
        (None, block_key, block_value), lambda p: (lax.div(p, blocks), 0, lax.rem(p, blocks))
    )
    flat = [x.reshape(-1, x.shape[-1]) for x in inputs]
    flat_memory = memory.reshape(-1, *memory.shape[2:])
    output, new = pl.pallas_call(
        functools.partial(_kernel, scale=scale, sizes=sizes, block_value=block_value),
        grid=(sizes.programs(tiles),),
        in_specs=[
            key_row(sizes.key_channels),
            key_row(sizes.key_channels),
            value_row(sizes.value_channels),
            key_row(sizes.decay_channels),
            key_row(sizes.erase_channels),
            value_row(sizes.write_channels),
            tile,
        ],
        out_specs=[value_row(sizes.value_channels), tile],
        out_shape=[
            jax.ShapeDtypeStruct(flat[2].shape, dtype),
            jax.ShapeDtypeStruct(flat_memory.shape, jnp.float32),
        ],
        input_output_aliases={6: 1},
        compiler_params=plgpu.CompilerParams(num_warps=tiles.num_warps, num_stages=1),
        interpret=interpret,
        name="gated_delta_step",
    )(*flat, flat_memory)
    return output.reshape(inputs.value.shape), new.reshape(memory.shape)


def _kernel(*refs, scale: float, sizes: StepSizes, block_value: int) -> None:
    *input_refs, memory_ref, output_ref, new_ref = refs
    query, key, value, log_decay, erase, write = input_refs
    rows, columns = tile_masks(sizes, block_value, pl.program_id(0))
    inside = None if rows is None or columns is None else rows[:, None] & columns[None, :]
    inputs = StepInputs(
        _load(query, rows),
        _load(key, rows),
        _load(value, columns),
        log_decay[0] if sizes.decay_channels == 1 else _load(log_decay, rows),
        erase[0] if sizes.erase_channels == 1 else _load(erase, rows),
        write[0] if sizes.write_channels == 1 else _load(write, columns),
    )
    output, memory = step_tile(inputs, _load(memory_ref, inside), scale)
    plgpu.store(output_ref, output.astype(output_ref.dtype), mask=columns)
    plgpu.store(new_ref, memory, mask=inside)


def tile_masks(
    sizes: StepSizes, block_value: int, program: jax.Array
) -> tuple[jax.Array, jax.Array] | tuple[None, None]:
    """Which rows [K rounded up] and columns [block_value] of a program's tile lie in the state.

    A tile that reaches past K or V lies over another head's numbers, neither to be read nor to be
    written. None where no tile does.
    """
    if sizes.key_channels == sizes.block_key and sizes.value_channels % block_value == 0:
        return None, None
    first = lax.rem(program, pl.cdiv(sizes.value_channels, block_value)) * block_value
    rows = lax.iota(jnp.int32, sizes.block_key) < sizes.key_channels
    return rows, first + lax.iota(jnp.int32, block_value) < sizes.value_channels


def _load(ref: Any, mask: jax.Array | None) -> jax.Array:
    return plgpu.load(ref, mask=mask, other=None if mask is None else 0)
