"""The decode step as an official Triton kernel, called through jax-triton.

The same step, tiles and arguments as the Pallas kernel of `step.py`, which dispatches here on
request: the way on once JAX drops Pallas's lowering through Triton, deprecated since JAX 0.11.
Importing this file needs `triton`; running the kernel needs `jax_triton` and a GPU too. What it is
compiled for ahead of time is `step_sizes.aot_signature`.
"""

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from pallas_kernels.decode.step_sizes import StepInputs, StepSizes, StepTiles, triton_constants


@triton.jit
def step_kernel(
    query,
    key,
    value,
    log_decay,
    erase,
    write,
    memory,
    output,
    new_memory,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    DECAY_CHANNELS: tl.constexpr,
    ERASE_CHANNELS: tl.constexpr,
    WRITE_CHANNELS: tl.constexpr,
):
    """One value head and one block of its V channels; `new_memory` may be `memory`.

    Pointers to contiguous query, key [B·H, K], value, output [B·N, V], gates of the same rows and
    1 or all channels, memory and new_memory [B·N, K, V] float32. GROUP is N // H.
    """
    blocks: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    head = (tl.program_id(0) // blocks).to(tl.int64)
    key_head = head // GROUP
    row = tl.arange(0, BLOCK_K)
    column = tl.program_id(0) % blocks * BLOCK_V + tl.arange(0, BLOCK_V)
    rows = row < K
    columns = column < V

    place = head * (K * V) + row[:, None] * V + column[None, :]
    inside = rows[:, None] & columns[None, :]
    state = tl.load(memory + place, mask=inside, other=0.0)

    q = tl.load(query + key_head * K + row, mask=rows, other=0.0).to(tl.float32)
    k = tl.load(key + key_head * K + row, mask=rows, other=0.0).to(tl.float32)
    v = tl.load(value + head * V + column, mask=columns, other=0.0).to(tl.float32)
    if DECAY_CHANNELS == 1:
        state = tl.exp(tl.load(log_decay + key_head).to(tl.float32)) * state
    else:
        g = tl.load(log_decay + key_head * K + row, mask=rows, other=0.0).to(tl.float32)
        state = tl.exp(g)[:, None] * state
    if ERASE_CHANNELS == 1:
        b = tl.load(erase + key_head).to(tl.float32)
    else:
        b = tl.load(erase + key_head * K + row, mask=rows, other=0.0).to(tl.float32)
    if WRITE_CHANNELS == 1:
        w = tl.load(write + head).to(tl.float32)
    else:
        w = tl.load(write + head * V + column, mask=columns, other=0.0).to(tl.float32)

    residual = w * v - tl.sum(state * (b * k)[:, None], axis=0)
    state = state + k[:, None] * residual[None, :]
    read = tl.sum(state * (SCALE * q)[:, None], axis=0)
    tl.store(output + head * V + column, read.to(output.dtype.element_ty), mask=columns)
    tl.store(new_memory + place, state, mask=inside)


def triton_step(
    inputs: StepInputs,
    memory: jax.Array,
    sizes: StepSizes,
    tiles: StepTiles,
    scale: float,
    dtype: str,
) -> tuple[jax.Array, jax.Array]:
    """The step through `jax_triton.triton_call`: arguments and results as in `decode_step`,
    the output in `dtype`.

    Raises:
      NotImplementedError: jax-triton does not load, as where JAX has no GPU support.
    """
    try:
        import jax_triton  # not above: compiling ahead of time must do without it
    except ImportError as error:
        raise NotImplementedError(
            "backend 'triton' needs jax-triton and a JAX with GPU support: pip install "
            "'carve_jax[gpu]', or use backend 'pallas'"
        ) from error

    output, new_memory = jax_triton.triton_call(  # which returns a list
        *inputs,
        memory,
        kernel=step_kernel,
        out_shape=[
            jax.ShapeDtypeStruct(inputs.value.shape, jnp.dtype(dtype)),
            jax.ShapeDtypeStruct(memory.shape, jnp.float32),
        ],
        grid=(sizes.programs(tiles),),
        name="gated_delta_step",
        num_warps=tiles.num_warps,
        num_stages=1,
        input_output_aliases={len(inputs): 1},
        **triton_constants(sizes, tiles, scale),
    )
    return output, new_memory
