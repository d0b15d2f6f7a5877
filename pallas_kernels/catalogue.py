"""Every kernel program this package ships, with the shapes and tiles it is compiled for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Program:
    """A JAX function that holds Pallas kernels, and arguments to lower it for.

    Attributes:
      name: what the program computes, such as `carve_forward`.
      tile_label: the tile its kernels are built for, such as `c32w8s2`; shapes too where they vary.
      dtype: dtype of its inputs, as a label.
      function: takes `arguments` (positional) and runs at least one kernel.
      arguments: `jax.ShapeDtypeStruct`s, or pytrees of them.
    """

    name: str
    tile_label: str
    dtype: str
    function: Callable[..., Any]
    arguments: Sequence[Any]


@dataclass(frozen=True)
class TritonProgram:
    """One official Triton kernel (`@triton.jit`), which is compiled without going through JAX.

    Attributes:
      name, tile_label, dtype: as in `Program`.
      kernel: where the kernel is defined, `package.module:function`, so that listing the catalogue
        needs no Triton.
      signature: Triton type of each runtime argument by name, such as `*bf16`, `fp32`, `i32`.
      constexprs: value of each compile-time argument by name.
      num_warps, num_stages: as at the call.
    """

    name: str
    tile_label: str
    dtype: str
    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3


def programs() -> list[Program | TritonProgram]:
    """All programs that are shipped, at every shipped tile and dtype."""
    return []
