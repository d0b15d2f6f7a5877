"""How the kernels cut their work: one frozen config, chosen from a small table."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

TABLE = Path(__file__).with_name("tiles.json")
SMALLEST = 16  # a tensor-core product is at least 16 wide on every side
LARGEST = 256


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Cut of the sequence kernels.

    Attributes:
      chunk: C, tokens of a tile (16, 32 or 64). A gate chunk is cut into such tiles.
      block_value: most value channels of a program that scans without content gate.
      block_key: most key channels of a program of the gradients' kernel.
      span_key: most key channels that the span kernel has in registers at once.
      warps: of the kernels that scan the sequence.
      stages: loads in flight in the forward scan.
      backward_stages: the same in the backward scan.
      parallel_warps: of the kernels that are parallel over tiles.
      product: precision of the matrix products ("bf16", "tf32", "tf32x3", "f32").
      inverse: precision of the products inside (I + T)⁻¹; one correction follows "bf16".
      solve: where the plain rule's inverse is found: "parallel", before the scan, or "walk", inside
        it, as CARVE must; CARVE with P_up = 0 equals GDN-2 to the bit under "walk".
      stretches: the most that a part of the plain rule's sequence is cut into, to be scanned side
        by side, their states composed: for few rows and heads, where a scan of whole parts leaves
        the card idle. 1 for none; 0 for as many as `triton.stretches` predicts, at K = V = 128, to
        be nearly the fastest on an H100. Not measured on any GPU.
    """

    chunk: int = 32
    block_value: int = 128
    block_key: int = 32
    span_key: int = 128
    warps: int = 8
    stages: int = 2
    backward_stages: int = 2
    parallel_warps: int = 4
    product: str = "bf16"
    inverse: str = "tf32"
    solve: str = "parallel"
    stretches: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (
            ("chunk", (16, 32, 64)),
            ("product", ("bf16", "tf32", "tf32x3", "f32")),
            ("inverse", ("bf16", "tf32", "tf32x3", "f32")),
            ("solve", ("parallel", "walk")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"Tiles.{name}={getattr(self, name)!r}; allowed are {allowed}")
        if type(self.stretches) is not int or self.stretches < 0:
            raise ValueError(
                f"Tiles.stretches={self.stretches!r}; allowed are whole numbers from 0 on"
            )
        if self.stretches != 1 and self.solve == "walk":
            raise ValueError(
                f"Tiles(stretches={self.stretches}, solve='walk'): a scan in stretches does not "
                "solve on its way; leave one of them out"
            )


def padded(channels: int) -> int:
    """Channels of a block: a power of two, 16 at least."""
    return max(SMALLEST, 1 << (channels - 1).bit_length())


# The largest K·V whose products fit in a block's shared memory (sm_100: tensor memory), as compiled
# (`python -m pallas_kernels.aot --compiler=triton`), by compute capability: 227 KB per block on 9.0
# and 10.0, 163 on 8.0, 99 on 8.6, 8.9 and 12.0.
_SMALL = {"bfloat16": 1 << 14, "float16": 1 << 13, "float32": 1 << 13}
LARGEST_STATE = {
    8.0: {"bfloat16": 1 << 16, "float16": 1 << 15, "float32": 1 << 14},
    8.6: _SMALL,
    8.9: _SMALL,
    9.0: {"bfloat16": 1 << 16, "float16": 1 << 15, "float32": 1 << 15},
    10.0: {"bfloat16": 1 << 14, "float16": 1 << 14, "float32": 1 << 14},
    12.0: _SMALL,
}


def holds_state(
    dtype: jnp.dtype | str, key_channels: int, value_channels: int, capability: float = 9.0
) -> bool:
    """Whether a program can hold a whole state of K × V, as it must under a content gate."""
    size = padded(key_channels) * padded(value_channels)
    return size <= LARGEST_STATE[capability][jnp.dtype(dtype).name]


@functools.cache
def read_table(path: Path = TABLE) -> list[dict[str, Any]]:
    """Rows of the table, in the order in which they are tried. A row holds "device" (a part of the
    device's name, empty for any), "capabilities" (a list, where it is for those compute
    capabilities alone), "dtype", "width" (the largest padded max(K, V)), "content" (true or false
    where it is for one kind of rule alone) and the fields of `Tiles`."""
    return json.loads(path.read_text(encoding="utf-8"))


def choose(
    dtype: jnp.dtype | str,
    key_channels: int,
    value_channels: int,
    device: str = "",
    content: bool = False,
    capability: float = 9.0,
) -> Tiles:
    """Tiles of the first row of the table for this dtype, size and kind of device.

    Args:
      dtype: of the query.
      key_channels, value_channels: K and V.
      device: the device's name; the rows for any device if empty.
      content: under a content gate.
      capability: the device's compute capability.

    Raises:
      LookupError: no row.
    """
    width = max(padded(key_channels), padded(value_channels))
    name = jnp.dtype(dtype).name
    for row in read_table():
        fits = row["dtype"] == name and width <= row["width"]
        fits = fits and row["device"] in device and row.get("content", content) == content
        if fits and capability in row.get("capabilities", [capability]):
            return Tiles(**row["tiles"])
    raise LookupError(f"no tiles for {name}, K={key_channels}, V={value_channels}")
