"""The GPUs that kernels are compiled for, as a compiler without a GPU has to be told of them."""

from typing import NamedTuple


class Chip(NamedTuple):
    """What a kernel is lowered for, and what a multiprocessor (SM) of it holds: one card of its
    compute capability (A10 for RTX 30, L4 for RTX 40, RTX PRO for RTX 50; JAX knows these names).

    Shared memory after opting in, warps and blocks an SM: CUDA C++ Programming Guide, "Technical
    Specifications per Compute Capability"; each block costs the driver another 1024 bytes.

    Attributes:
      device_kind: the name by which JAX knows the device.
      capability: compute capability.
      shared_bytes: shared memory a block can have.
      shared_bytes_sm: that of all blocks of an SM.
      warps, blocks: most of them on an SM.
      multiprocessors: SMs of the device named.
      tensor_memory_columns: of a block (sm_100; 0 elsewhere).
      gigahertz: clock under load.
      bytes_per_second: of memory: measured by a copy on the H100, the data sheet's elsewhere.
      memory_bytes, l2_bytes: memory of the device, and its last cache.
    """

    device_kind: str
    capability: float
    shared_bytes: int
    shared_bytes_sm: int
    warps: int
    blocks: int
    multiprocessors: int
    tensor_memory_columns: int
    gigahertz: float
    bytes_per_second: float
    memory_bytes: int
    l2_bytes: int


KB, GB, TB = 1024, 10**9, 1e12
CHIPS = {
    "sm_80": Chip(
        "NVIDIA A100", 8.0, 163 * KB, 164 * KB, 64, 32, 108, 0, 1.41, 2.04 * TB, 80 * GB, 40 << 20
    ),
    "sm_86": Chip(
        "NVIDIA A10", 8.6, 99 * KB, 100 * KB, 48, 16, 72, 0, 1.69, 0.60 * TB, 24 * GB, 6 << 20
    ),
    "sm_89": Chip(
        "NVIDIA L4", 8.9, 99 * KB, 100 * KB, 48, 24, 58, 0, 2.04, 0.30 * TB, 24 * GB, 48 << 20
    ),
    "sm_90": Chip(
        "NVIDIA H100", 9.0, 227 * KB, 228 * KB, 64, 32, 132, 0, 1.80, 2.97 * TB, 80 * GB, 50 << 20
    ),
    "sm_100": Chip(
        *("NVIDIA B200", 10.0, 227 * KB, 228 * KB, 64, 32, 148, 512),
        *(1.96, 8.0 * TB, 180 * GB, 126 << 20),
    ),
    "sm_120": Chip(
        *("NVIDIA RTX PRO 6000", 12.0, 99 * KB, 100 * KB, 48, 24, 188, 0),
        *(2.60, 1.79 * TB, 96 * GB, 128 << 20),
    ),
}


def target_config(arch: str) -> str:
    """XLA's description of a chip, as `get_topology_desc(target_config=…)` takes it."""
    chip = CHIPS[arch]
    major, minor = divmod(round(10 * chip.capability), 10)
    features = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {chip.shared_bytes_sm}
  threads_per_core_limit: {32 * chip.warps}
  core_count: {chip.multiprocessors}
  fpus_per_core: {64 if chip.capability == 8.0 else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bytes_per_second)}
  l2_cache_size: {chip.l2_bytes}
  clock_rate_ghz: {chip.gigahertz}
  device_memory_size: {chip.memory_bytes}
  shared_memory_per_block_optin: {chip.shared_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor}{features} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{chip.device_kind}"
"""
