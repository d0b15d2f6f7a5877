"""Sizes, tiles and checks of the decode step, and the types its Triton kernel is compiled for.

Needs no Triton: `step.py`, `triton_step.py` and the ahead-of-time catalogue share it.
"""

import importlib.util
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

BACKENDS = ("pallas", "triton")
DTYPES = ("bfloat16", "float16", "float32")
MAX_KEY_CHANNELS = 256
_MULTIPROCESSORS = 132  # of an H100 or H200
_TRITON_TYPES = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}


@dataclass(frozen=True)
class StepTiles:
    """How a step is cut: value channels and warps of a program, both powers of two."""

    block_value: int
    num_warps: int

    def __post_init__(self) -> None:
        for name in ("block_value", "num_warps"):
            size = getattr(self, name)
            if size < 1 or size & (size - 1):
                raise ValueError(f"{name} is {size}; it must be a power of two, 1 or more")


class StepSizes(NamedTuple):
    """Sizes of a step; those of the gates are 1 for one gate per head."""

    batch: int
    key_heads: int
    value_heads: int
    key_channels: int
    value_channels: int
    decay_channels: int
    erase_channels: int
    write_channels: int

    @property
    def group(self) -> int:
        """Value heads that read one key head."""
        return self.value_heads // self.key_heads

    @property
    def block_key(self) -> int:
        """Rows of a tile: K rounded up to a power of two."""
        return pl.next_power_of_2(self.key_channels)

    def programs(self, tiles: StepTiles) -> int:
        """Programs of a launch."""
        return self.batch * self.value_heads * pl.cdiv(self.value_channels, tiles.block_value)


class StepInputs(NamedTuple):
    """What a step reads beside the state."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    log_decay: jax.Array
    erase: jax.Array
    write: jax.Array


def default_tiles(sizes: StepSizes) -> StepTiles:
    """Tiles for a shape: 32 value channels (a 128-byte row) and a warp for each 1024 elements of
    the tile; where that leaves the chip idle, 16 channels and a warp for each 512.

    With few programs nothing hides a warp's latency, so each is to have little to do. XLA compiles
    the step of 16 heads, K = V = 128, bfloat16, for an H100 to these instructions per warp: 441 (32
    channels, 4 warps), 463 (16, 2 warps), 336 (16, 4 warps), 275 (8, 4 warps). Large batches were
    measured at 87% and 91% of a copy's bytes per second; the rest is reasoned, not yet measured.
    """
    block = min(32, pl.next_power_of_2(sizes.value_channels))
    elements_a_warp = 1024
    if sizes.programs(StepTiles(block, 1)) < _MULTIPROCESSORS:
        block, elements_a_warp = min(block, 16), 512
    return StepTiles(block, max(1, min(8, sizes.block_key * block // elements_a_warp)))


class AotSignature(NamedTuple):
    """All that compiling the Triton kernel takes; `kernel` is where it is defined."""

    kernel: str
    signature: dict[str, str]
    constexprs: dict[str, int | float]
    num_warps: int
    num_stages: int


def aot_signature(
    sizes: StepSizes, tiles: StepTiles, *, dtype: str, gate_dtype: str | None = None
) -> AotSignature:
    """What the Triton kernel is compiled for at these sizes, tiles and dtypes.

    Args:
      sizes, tiles: of the step.
      dtype: of query, key, value and output, by name.
      gate_dtype: of the gates; `dtype` if None.
    """
    gates = ("log_decay", "erase", "write")
    signature = dict.fromkeys(StepInputs._fields, _TRITON_TYPES[dtype])
    signature |= dict.fromkeys(gates, _TRITON_TYPES[gate_dtype or dtype])
    signature |= {"memory": "*fp32", "output": _TRITON_TYPES[dtype], "new_memory": "*fp32"}
    constexprs = triton_constants(sizes, tiles, sizes.key_channels**-0.5)
    path = "pallas_kernels.decode.triton_step:step_kernel"
    return AotSignature(path, signature, constexprs, tiles.num_warps, num_stages=1)


def triton_constants(sizes: StepSizes, tiles: StepTiles, scale: float) -> dict[str, int | float]:
    """Compile-time arguments of the Triton kernel."""
    return {
        "SCALE": scale,
        "GROUP": sizes.group,
        "K": sizes.key_channels,
        "V": sizes.value_channels,
        "BLOCK_K": sizes.block_key,
        "BLOCK_V": tiles.block_value,
        "DECAY_CHANNELS": sizes.decay_channels,
        "ERASE_CHANNELS": sizes.erase_channels,
        "WRITE_CHANNELS": sizes.write_channels,
    }


def check_inputs(inputs: StepInputs, memory: jax.Array) -> StepSizes:
    """The sizes of a step, or an error that names the argument, what it is and what it may be."""
    named = {**inputs._asdict(), "memory": memory}
    for name, x in named.items():
        rank = 4 if name == "memory" else 3
        if x.ndim != rank:
            raise ValueError(f"{name} has shape {x.shape}; expected rank {rank}")
    batch, key_heads, key_channels = inputs.key.shape
    value_heads, value_channels = inputs.value.shape[1:]
    if value_heads % key_heads:
        raise ValueError(
            f"value has {value_heads} heads and key {key_heads}; the heads of value must be a "
            "multiple of those of key"
        )
    key_shape = (batch, key_heads, key_channels)
    value_shape = (batch, value_heads, value_channels)
    expected: dict[str, set[tuple[int, ...]]] = {
        "query": {key_shape},
        "value": {value_shape},
        "log_decay": {key_shape, (*key_shape[:2], 1)},
        "erase": {key_shape, (*key_shape[:2], 1)},
        "write": {value_shape, (*value_shape[:2], 1)},
        "memory": {(batch, value_heads, key_channels, value_channels)},
    }
    for name, shapes in expected.items():
        if named[name].shape not in shapes:
            allowed = " or ".join(map(str, sorted(shapes, reverse=True)))
            raise ValueError(f"{name} has shape {named[name].shape}; expected {allowed}")
    if memory.dtype != jnp.float32:
        raise TypeError(f"memory is {memory.dtype}; the state of a step is float32")
    for name, x in inputs._asdict().items():
        if x.dtype.name not in DTYPES:
            raise NotImplementedError(
                f"{name} is {x.dtype}; the decode kernels take {', '.join(DTYPES)}"
            )
    if key_channels > MAX_KEY_CHANNELS:
        raise NotImplementedError(
            f"key has {key_channels} channels; the decode kernels hold a whole column of the state "
            f"and take up to {MAX_KEY_CHANNELS}"
        )
    gates = (x.shape[-1] for x in (inputs.log_decay, inputs.erase, inputs.write))
    return StepSizes(batch, key_heads, value_heads, key_channels, value_channels, *gates)


def output_type(asked: jax.Array | jnp.dtype | str) -> str:
    """Name of the output's dtype, given or an array's.

    Raises:
      NotImplementedError: no kernel gives it.
    """
    name = jnp.dtype(getattr(asked, "dtype", asked)).name
    if name not in DTYPES:
        raise NotImplementedError(f"output_dtype is {name}; allowed are {', '.join(DTYPES)}")
    return name


def check_backend(backend: str, interpret: bool) -> None:
    """Raise unless the backend exists and can run here; names the way out."""
    if backend not in BACKENDS:
        raise ValueError(
            f"unknown backend {backend!r}; allowed are {', '.join(map(repr, BACKENDS))}"
        )
    if backend == "pallas":
        return
    if interpret:
        raise NotImplementedError(
            "backend 'triton' has no interpret mode and needs a GPU; use backend 'pallas'"
        )
    if importlib.util.find_spec("jax_triton") is None or importlib.util.find_spec("triton") is None:
        raise NotImplementedError(
            "backend 'triton' needs jax-triton, which is not installed: pip install "
            "'carve_jax[gpu]', or use backend 'pallas'"
        )
